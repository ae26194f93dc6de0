# syntax=docker/dockerfile:1
# Two images out of one file (docs/deploy.md says how to run them):
#   docker build --target cpu    -t requery:cpu .
#   docker build --target nvidia -t requery:nvidia .
# `make image` builds the first without Docker, and tries it.
#
# The container listens on all of its addresses, so it does not start without keys: make some with
# 'docker run --rm requery:cpu keys new --name backend --scope rewrite' and hand the folder in.
# Nothing but /tmp is written, and no privilege is needed:
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#     -v ./keys:/etc/requery:ro -e REQUERY_API_KEYS_FILE=/etc/requery/keys.yaml -p 8000:8000 \
#     requery:cpu
#
# Build arguments:
#   BASE_IMAGE   a Debian 12 with Python 3.11 and its venv, by digest
#   TORCH_INDEX  where torch's CPU build is; empty: wherever pip is configured to look
#   VERSIONS     model versions whose weights are merged into the image; empty: none
# The secret "pip", if there is one, is pip's configuration: an index of your own, say.
ARG BASE_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${BASE_IMAGE} AS base
# libgomp and libnuma are linked by the engine. Debian keeps one version of a package: none to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/* /var/log/*

FROM base AS build
# For the packages of the lock that have no wheel for a machine.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/requery/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_COMPILE=1 \
    PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/requery
WORKDIR /src

# Our own code, which changes often, is a layer of some 25 MB on top.
FROM build AS code
COPY requirements/cpu.txt requirements/
# hadolint cannot see that the lock has the version.
# hadolint ignore=DL3013
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps "$(grep -o '^setuptools==[^ ]*' requirements/cpu.txt)"
COPY . .
# Whoever built this may have kept files to themselves that the service's own user has to read.
RUN pip install --no-cache-dir --no-deps --no-index --no-build-isolation --prefix /opt/code . \
    && python -m compileall -q -s /opt/code -p /opt/requery \
        --invalidation-mode unchecked-hash /opt/code/lib \
    && chmod -R a+rX /opt/code

FROM base AS runtime
RUN groupadd --gid 10001 requery \
    && useradd --create-home --gid 10001 --uid 10001 requery \
    && install -d -o requery -g requery /var/cache/requery
ENV PATH=/opt/requery/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    REQUERY_HOST=0.0.0.0 \
    REQUERY_PORT=8000 \
    REQUERY_CACHE_DIR=/var/cache/requery \
    TMPDIR=/tmp \
    PYTHONDONTWRITEBYTECODE=1
# What libraries would keep in the home folder, which may be read-only.
ENV XDG_CACHE_HOME=/tmp/libraries \
    XDG_CONFIG_HOME=/tmp/libraries/config \
    HF_HOME=/tmp/libraries/huggingface \
    TRITON_HOME=/tmp/libraries \
    TORCHINDUCTOR_CACHE_DIR=/tmp/libraries/inductor \
    VLLM_CACHE_ROOT=/tmp/libraries/vllm \
    VLLM_CONFIG_ROOT=/tmp/libraries/vllm-config \
    FLASHINFER_WORKSPACE_BASE=/tmp/libraries \
    CUDA_CACHE_PATH=/tmp/libraries/cuda
WORKDIR /home/requery
EXPOSE 8000
# Live is enough: a container that is still loading is not to be killed, only not to be sent to,
# and that is what /readyz is for.
HEALTHCHECK --interval=10s --timeout=3s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['REQUERY_PORT'] + '/livez', timeout=2)"]
ENTRYPOINT ["requery"]
CMD ["serve"]

# What changes seldom and is large has a layer of its own: the libraries. Byte code that is checked
# by nothing but its being there is the same in every build, and saves seconds of each start.
# Some libraries bring files that are no Python of this version: what fails to compile may.
FROM build AS libraries-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements/cpu.txt requirements/
# hadolint cannot see that the lock has the version.
# hadolint ignore=DL3013
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        "$(grep -o '^torch==[^ ]*' requirements/cpu.txt)" \
    && pip install --no-deps -r requirements/cpu.txt \
    && (python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/requery/lib || true) \
    && chmod -R a+rX /opt/requery

FROM libraries-cpu AS weights-cpu
COPY --from=code /opt/code /opt/requery
ARG VERSIONS=general-1
RUN mkdir -p /weights/models \
    && for version in $VERSIONS; do \
        requery models materialise "$version" --cache-dir /weights || exit 1; done \
    && rm -f /weights/models/*.lock && chmod -R a+rX /weights

FROM runtime AS cpu
COPY --from=libraries-cpu /opt/requery /opt/requery
COPY --from=weights-cpu --chown=10001:10001 /weights /var/cache/requery
COPY --from=code /opt/code /opt/requery
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001

FROM build AS libraries-nvidia
COPY requirements/gpu.txt requirements/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps -r requirements/gpu.txt \
    && (python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/requery/lib || true) \
    && chmod -R a+rX /opt/requery

FROM libraries-nvidia AS weights-nvidia
COPY --from=code /opt/code /opt/requery
ARG VERSIONS=general-1
RUN mkdir -p /weights/models \
    && for version in $VERSIONS; do \
        requery models materialise "$version" --cache-dir /weights || exit 1; done \
    && rm -f /weights/models/*.lock && chmod -R a+rX /weights

FROM runtime AS nvidia
# Triton compiles the launchers of its kernels when it starts.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*
COPY --from=libraries-nvidia /opt/requery /opt/requery
COPY --from=weights-nvidia --chown=10001:10001 /weights /var/cache/requery
COPY --from=code /opt/code /opt/requery
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001

# Last, so that a plain `docker build .` makes the image that runs anywhere.
FROM cpu AS default
