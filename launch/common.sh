# shellcheck shell=bash
# What the scripts beside this file share; they source it.

dry_run=
# shellcheck disable=SC2034
NOT_INSTALLED=69 # what tpu_run ends with where tpu_create has not come to its end

# Print the comment at the top of the script, which is its manual.
manual() { sed -n '2,/^$\|^set/{/^#/s/^# \{0,1\}//p}' "$0"; }

note() { echo "${0##*/}: $*" >&2; }

fail() {
  note "$@"
  exit 1
}

# Print arguments as one line that bash takes apart into the same arguments, here or elsewhere.
quoted() {
  local line
  printf -v line ' %q' "$@"
  printf '%s\n' "${line:1}"
}

# Run a command, or with --dry-run print it.
run() { if [[ -n "$dry_run" ]]; then quoted "$@"; else "$@"; fi; }

# Is a command that ended with this code to be run again? After a preemption (75), or when it died of
# a signal that was no Ctrl-C, yes: it continues from its last checkpoint. launch/until_done has the
# same list for itself.
again() { [[ "$1" == 75 || "$1" == 134 || "$1" == 137 || "$1" == 139 || "$1" == 143 ]]; }

# Of lines "ended SECONDS CODE", one for each process of a run, print the code of the first failure:
# the others fail because of it. $1 is printed if there is none.
first_failure() {
  local code
  code=$(awk '$1 == "ended" && $3 != 0 { print $2, $3 + 0 }' | LC_ALL=C sort -n |
    awk 'NR == 1 { print $2 }')
  echo "${code:-$1}"
}

# gcloud compute tpus, for the slice that $name, $zone and $project name.
tpu() { run gcloud compute tpus "$@" "--zone=$zone" ${project:+"--project=$project"} --quiet; }

# Print the state of the request ("queued-resources") or of the slice ("tpu-vm"): NOT_FOUND if there
# is none, UNKNOWN with the reason on stderr if gcloud does not say.
state() {
  local field=state said
  [[ "$1" == tpu-vm ]] || field=state.state
  { said=$(tpu "$1" describe "$name" "--format=value($field)" 2>&1 >&3); } 3>&1 && return
  if [[ "$said" == *NOT_FOUND* || "$said" == *"not found"* ]]; then
    echo NOT_FOUND
  else
    note "$said"
    echo UNKNOWN
  fi
}

# Check what names a slice; the name ends up in a path on its workers.
check_slice() {
  [[ -n "$name" && -n "$zone" ]] || fail "--name and --zone must be given: see --help"
  [[ "$name" =~ ^[a-z][a-z0-9-]*$ ]] ||
    fail "--name is \"$name\": it takes small letters, digits and dashes"
}
