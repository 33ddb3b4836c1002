"""What makes a shell complete the command `simclr`: a script from the table of its doors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SHELLS = ("bash", "zsh")
ABOUT = """usage: simclr completion bash|zsh

Print a script that completes commands, flags, recipes and files.

    simclr completion bash > ~/.local/share/bash-completion/completions/simclr
    eval "$(simclr completion zsh)"      # in ~/.zshrc, after compinit

It lists what this version has: write it again after an update."""

# Bash takes "--config=digits" for three words, zsh for one.
SCRIPT = """\
_simclr() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} flag= prefix= words=
  COMPREPLY=()
  if [[ $word == = ]]; then
    flag=$before word=
  elif [[ $before == = ]]; then
    flag=${{COMP_WORDS[COMP_CWORD-2]}}
  elif [[ $word == -*=* ]]; then
    flag=${{word%%=*}} prefix=${{word%%=*}}= word=${{word#*=}}
  fi
  if [[ -n $flag ]]; then
    [[ $flag == --config ]] && words="{recipes}"
    compopt -o filenames 2>/dev/null  # which zsh does not have
    COMPREPLY=($(compgen -P "$prefix" -W "$words" -- "$word") $(compgen -P "$prefix" -f -- "$word"))
    return
  fi
  if [[ $COMP_CWORD -eq 1 ]]; then
    words="{commands}"
  else
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} != *= ]] && COMPREPLY=("${{COMPREPLY[0]}} ")
  return 0
}}
complete -o nospace -F _simclr simclr"""
ZSH = "autoload -U +X bashcompinit && bashcompinit"


def script(shell: str, flags: Mapping[str, Sequence[str]], recipes: Sequence[str]) -> str:
    """Return the script of a shell.

    Args:
      shell: one of `SHELLS`.
      flags: of each door, `--name=VALUE` or `--[no]name`.
      recipes: names that `--config` takes beside files.
    """
    cases = [f'      {name}) words="{" ".join(_words(forms))}" ;;' for name, forms in flags.items()]
    cases.append(f'      completion) words="{" ".join(SHELLS)}" ;;')
    made = SCRIPT.format(
        recipes=" ".join(recipes),
        commands=" ".join([*flags, "completion", "--help", "--version"]),
        cases="\n".join(cases),
    )
    return f"{ZSH}\n{made}" if shell == "zsh" else made


def _words(forms: Sequence[str]) -> list[str]:
    found = []
    for form in forms:
        name, equals, _ = form.partition("=")
        switch = name.replace("[no]", "")
        found += [f"{name}="] if equals else [switch, name.replace("[", "").replace("]", "")]
    return [*found, "--help"]
