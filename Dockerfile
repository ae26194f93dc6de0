# syntax=docker/dockerfile:1
# Two images out of one file:
#   docker build --target cpu    -t requery:cpu .
#   docker build --target nvidia -t requery:nvidia .
# The NVIDIA image needs the NVIDIA container toolkit on the host (docker run --gpus all).
# Weights are merged at the first start, into /var/cache/requery: mount a volume there to keep them.
#
# The container listens on all of its addresses, so it does not start without keys: make some with
# 'docker run --rm requery:cpu keys new --name backend --scope rewrite' and hand the file in.
# Nothing but the cache and /tmp is written, and no privilege is needed:
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#     -v requery-cache:/var/cache/requery -p 8000:8000 \
#     -v ./keys.yaml:/etc/requery/keys.yaml:ro -e REQUERY_API_KEYS_FILE=/etc/requery/keys.yaml \
#     requery:cpu
# To follow the file while it runs, mount its folder: a single file that is mounted stays the one
# that it was, when an editor puts another in its place.

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
# vLLM compiles small kernels and binds threads when it starts.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ libc6-dev libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/*

FROM base AS build
RUN python -m venv /opt/requery
ENV PATH=/opt/requery/bin:$PATH
WORKDIR /src

FROM build AS build-cpu
COPY requirements/cpu.txt requirements/
# torch's CPU build is only on the PyTorch project's own index.
RUN pip install --no-deps "$(grep '^torch==' requirements/cpu.txt)" \
        --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-deps -r requirements/cpu.txt
COPY . .
# Whoever built this may have kept files to themselves that the service's own user has to read.
RUN pip install --no-deps --no-build-isolation . && chmod -R a+rX /opt/requery

FROM build AS build-nvidia
COPY requirements/gpu.txt requirements/
RUN pip install --no-deps -r requirements/gpu.txt
COPY . .
# Whoever built this may have kept files to themselves that the service's own user has to read.
RUN pip install --no-deps --no-build-isolation . && chmod -R a+rX /opt/requery

FROM base AS runtime
RUN useradd --create-home --uid 10001 requery \
    && install -d -o requery -g requery /var/cache/requery
ENV PATH=/opt/requery/bin:$PATH \
    REQUERY_HOST=0.0.0.0 \
    REQUERY_PORT=8000 \
    REQUERY_CACHE_DIR=/var/cache/requery \
    TMPDIR=/tmp \
    PYTHONDONTWRITEBYTECODE=1
# What libraries would keep in the home folder, which may be read-only.
ENV XDG_CACHE_HOME=/var/cache/requery/libraries \
    XDG_CONFIG_HOME=/var/cache/requery/libraries/config \
    HF_HOME=/var/cache/requery/libraries/huggingface \
    TRITON_HOME=/var/cache/requery/libraries \
    FLASHINFER_WORKSPACE_BASE=/var/cache/requery/libraries \
    CUDA_CACHE_PATH=/var/cache/requery/libraries/cuda
USER requery
WORKDIR /home/requery
VOLUME /var/cache/requery
EXPOSE 8000
# Live is enough: a container that is still loading is not to be killed, only not to be sent to,
# and that is what /readyz is for.
HEALTHCHECK --interval=10s --timeout=3s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['REQUERY_PORT'] + '/livez', timeout=2)"]
ENTRYPOINT ["requery"]
CMD ["serve"]

FROM runtime AS nvidia
COPY --from=build-nvidia /opt/requery /opt/requery

# Last, so that a plain `docker build .` makes the image that runs anywhere.
FROM runtime AS cpu
COPY --from=build-cpu /opt/requery /opt/requery
