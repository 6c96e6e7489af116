# Training of interpreters on CUDA: `interpreter`. Build from the root of the repository; CUDA_VERSION must have
# the major version that torch was built for:
#   docker build -f docker/trainer.Dockerfile -t diffdgss-trainer .
#   docker run --gpus all --read-only --tmpfs /tmp -v features:/data -v models:/models diffdgss-trainer \
#       interpreter train --store /data/features.zarr --dataset photos --target mask --out /models/mine
ARG CUDA_VERSION=13.0.2
# Since 2.3.2 a plain install of mamba-ssm has no scan kernel; it is built here, and only its wheel is copied on.
FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu24.04 AS scan
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0+PTX"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008  # Ubuntu deletes every version of Python 3.12 but the newest, so none can be pinned
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3.12 -m venv /opt/venv \
    && /opt/venv/bin/pip install torch==2.13.0 \
    && /opt/venv/bin/pip install setuptools==80.9.0 wheel==0.48.0 ninja==1.13.0 packaging==26.0 einops==0.8.1
ENV MAMBA_KEEP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST} MAX_JOBS=4
RUN /opt/venv/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels mamba-ssm==2.3.2.post1

FROM python:3.12-slim-trixie AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install torch==2.13.0
WORKDIR /src
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY store store
COPY extractor extractor
COPY interpreter interpreter
COPY service service
COPY --from=scan /wheels /wheels
RUN /opt/venv/bin/pip install --constraint requirements.lock ".[s3]" /wheels/*.whl

FROM python:3.12-slim-trixie
RUN useradd --create-home --uid 10001 diffdgss && mkdir /data /models && chown diffdgss /data /models
COPY --from=build /opt/venv /opt/venv
USER 10001:10001
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp NUMBA_CACHE_DIR=/tmp \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /tmp
VOLUME ["/data", "/models"]
# Training has no port to probe: the container is healthy while process 1 exists.
HEALTHCHECK --interval=60s --timeout=5s CMD ["python", "-c", "import os; os.kill(1, 0)"]
CMD ["interpreter", "--help"]
