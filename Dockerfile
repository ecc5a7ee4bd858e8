# syntax=docker/dockerfile:1
# docker build -t force-delta .                        CPU
# docker build -t force-delta --build-arg TORCH=cuda . NVIDIA (run with --gpus all)
# docker run -p 8501:8501 -v fd-data:/data -v fd-models:/models force-delta
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH=cpu
ARG UV_VERSION=0.13.9
# Compiled bytecode saves seconds of every start; copies, because the cache is not in the final image.
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_HTTP_TIMEOUT=300
RUN pip install --no-cache-dir "uv==${UV_VERSION}" && uv venv /opt/venv
WORKDIR /src
COPY requirements.txt ./
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN --mount=type=cache,target=/root/.cache/uv \
    if [ "${TORCH}" = cpu ]; then \
        grep -vE '^(nvidia-|cuda-|triton)' requirements.txt > /tmp/requirements.txt \
        && uv pip install --python /opt/venv/bin/python --torch-backend cpu -r /tmp/requirements.txt; \
    else \
        uv pip install --python /opt/venv/bin/python -r requirements.txt; \
    fi
COPY pyproject.toml README.md LICENSE app.py ui.py ./
COPY .streamlit .streamlit
COPY static static
COPY pages pages
COPY fdcore fdcore
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --python /opt/venv/bin/python --no-deps .

FROM python:${PYTHON}-slim-bookworm AS app
# gcc-less runtime; libgomp is torch's only system library.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 fdcore \
    && useradd --create-home --uid 10001 --gid 10001 fdcore \
    && install -d -o fdcore -g fdcore /data /models
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY --chown=fdcore:fdcore app.py ui.py ./
COPY --chown=fdcore:fdcore .streamlit .streamlit
COPY --chown=fdcore:fdcore static static
COPY --chown=fdcore:fdcore pages pages
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CACHED_PATH_CACHE_ROOT=/models/cached_path \
    HF_HOME=/models/huggingface \
    WARP_CACHE_PATH=/models/warp \
    FDCORE_ENVIRONMENTS=/models/environments \
    UV_CACHE_DIR=/models/uv \
    UV_PYTHON_INSTALL_DIR=/models/python \
    FDCORE_DATA=/data
USER 10001:10001
VOLUME ["/data", "/models"]
EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8501/_stcore/health', timeout=4)"]
CMD ["streamlit", "run", "app.py", "--server.address=0.0.0.0", "--server.port=8501", "--server.headless=true"]
