# An image for a CPU or for CUDA, by one argument: the name of PyTorch's package index.
#
#   docker build --build-arg TORCH=cpu -t sft-recipes .
#   docker build --build-arg TORCH=cu130 -t sft-recipes .      # needs the NVIDIA Container Toolkit to run: --gpus all
#   docker run --rm -it sft-recipes make test
FROM python:3.11-slim-bookworm
ARG TORCH=cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 sft \
    && install -d -o sft /sft
USER sft
WORKDIR /sft

# What changes seldom comes first: a change of the code installs nothing again.
COPY --chown=sft requirements*.txt Makefile ./
RUN python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir "$(grep '^torch==' requirements.txt)" --index-url "https://download.pytorch.org/whl/$TORCH" \
    && PIP_NO_CACHE_DIR=1 make .venv/ready-dev
COPY --chown=sft . .
ENV PATH="/sft/.venv/bin:$PATH"
CMD ["make", "help"]
