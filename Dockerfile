# syntax=docker/dockerfile:1
#
# Two images, for linux/amd64 (faiss-gpu has no other wheels):
#   docker build --target beam-worker    --tag id2-beam-worker .      embeds and searches on Dataflow, Flink, Spark
#   docker build --target prefect-worker --tag id2-prefect-worker .   starts the flows
# Versions stand in requirements.lock. Here stand only the tags of the images copied from.

FROM python:3.11-slim AS base
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    DO_NOT_TRACK=1
WORKDIR /opt/id2
COPY requirements.lock ./
# torch and faiss differ between the images. The lock names every package, so nothing has to be resolved;
# `pip check` at the end of each image proves it.
RUN grep -vE '^(torch|faiss-cpu)==' requirements.lock > common.txt \
    && pip install --no-deps --requirement common.txt \
    && rm common.txt

# The project is built apart: the images get it last, so a change of code leaves the large layers alone.
FROM base AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY id2core id2core
COPY beam_jobs beam_jobs
COPY id2 id2
COPY flows flows
RUN pip wheel --no-deps --wheel-dir /dist .

FROM base AS beam-worker
# CUDA 12.6 is the one CUDA that both sides have: PyTorch publishes torch 2.13 for 12.6, 13.0 and 13.2,
# and faiss-gpu is built for 12. It covers GPUs from V100 and T4 to H100, and needs driver 525 or newer.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu126
# With its dependencies, unlike the base: the lock, made without a GPU, has none of CUDA's libraries.
# torch==2.13.0 takes 2.13.0+cu126: a local version satisfies the pin and is preferred to the bare one.
RUN sed -n -e '/^torch==/p' -e 's/^faiss-cpu==/faiss-gpu==/p' requirements.lock > gpu.txt \
    && pip install --extra-index-url "$TORCH_INDEX" --constraint requirements.lock --requirement gpu.txt \
    && rm gpu.txt \
    && python -c "import faiss, torch; assert (torch.version.cuda or '').startswith('12.'), torch.__version__"
# `ID2_COMPILE`: Triton compiles what launches its kernels.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# CUDA's base images set these, a plain Python image does not: where the host's driver is mounted on Dataflow,
# and what NVIDIA's container runtime asks for elsewhere.
ENV PATH=/usr/local/nvidia/bin:$PATH \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist pip install --no-deps /dist/*.whl && pip check
# Beam's launcher fetches the job and starts its workers. It must be of the installed apache-beam's version.
# It runs as root, as in Beam's own images: it makes a virtual environment at /opt/apache/beam-venv.
COPY --from=apache/beam_python3.11_sdk:2.77.0 /opt/apache/beam /opt/apache/beam
ENTRYPOINT ["/opt/apache/beam/boot"]

FROM base AS prefect-worker
# It starts jobs, and runs small ones itself: the CPU build of torch comes without gigabytes of CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN grep -E '^(torch|faiss-cpu)==' requirements.lock > cpu.txt \
    && pip install --extra-index-url "$TORCH_INDEX" --constraint requirements.lock --requirement cpu.txt \
    && rm cpu.txt
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist pip install --no-deps /dist/*.whl && pip check
RUN useradd --create-home --uid 1000 id2
# The deployments name the flow by its file below ID2_HOME; everything it imports is installed.
COPY flows flows
COPY infra/prefect.yaml infra/prefect.yaml
ENV ID2_HOME=/opt/id2
USER 1000
# PREFECT_API_URL says where the server is. A command, not an entry point: `docker run … id2 doctor` works too.
CMD ["prefect", "worker", "start", "--pool", "id2", "--type", "process"]
