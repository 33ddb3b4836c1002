# syntax=docker/dockerfile:1
#
#   docker build -t simclr_jax .                                                   # CPU
#   docker build -t simclr_jax:cuda --build-arg EXTRAS=cuda,images,tf,gcs .        # NVIDIA GPUs
#   docker run --rm --init --gpus=all --user="$(id -u):$(id -g)" -v "$PWD:/work" \
#       simclr_jax:cuda train --data=photographs --workdir=runs/photographs
#
# The wheels of JAX bring CUDA along; the host needs a driver and NVIDIA's container toolkit.
# --init hands SIGTERM on, so that a run that is stopped saves first.

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
ARG EXTRAS=images
WORKDIR /source
RUN python -m venv /opt/venv
# Without the code, so that what it depends on is installed anew only if that has changed.
COPY pyproject.toml README.md LICENSE ./
RUN --mount=type=cache,target=/root/.cache/pip \
    mkdir simclr_jax && /opt/venv/bin/pip install ".[${EXTRAS}]" \
    && /opt/venv/bin/pip uninstall --yes simclr-jax
COPY setup.py ./
COPY configs configs
COPY simclr_jax simclr_jax
RUN --mount=type=cache,target=/root/.cache/pip /opt/venv/bin/pip install --no-deps .

FROM python:${PYTHON}-slim
RUN useradd --create-home --uid=1000 simclr
COPY --from=build /opt/venv /opt/venv
# A home that anybody may write, for --user: caches of compiled programs and of TFDS lie there.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
USER 1000
WORKDIR /work
ENTRYPOINT ["simclr"]
CMD ["--help"]
