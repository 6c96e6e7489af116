# Extraction on CUDA: `extractor`, and the Dask scheduler and workers that it uses. Build from the root of the
# repository; CUDA_VERSION must have the major version that torch was built for:
#   docker build -f docker/extractor.Dockerfile -t diffdgss-extractor .
#   docker run --gpus all --read-only --tmpfs /tmp -v photos:/data/photos:ro -v features:/data diffdgss-extractor \
#       extractor run --dataset folder:/data/photos --store /data/features.zarr --device cuda
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
RUN useradd --create-home --uid 10001 diffdgss && mkdir /data && chown diffdgss /data
COPY --from=build /opt/venv /opt/venv
USER 10001:10001
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp NUMBA_CACHE_DIR=/tmp \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /tmp
VOLUME /data
EXPOSE 8786 8787
# Scheduler and workers set DIFFDGSS_HEALTH_PORT (8787 and 8788). Without it, as in a single run, the check always
# succeeds while the process runs.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request as r; port = os.environ.get('DIFFDGSS_HEALTH_PORT'); port and r.urlopen(f'http://127.0.0.1:{port}/health', timeout=4)"]
CMD ["extractor", "--help"]
