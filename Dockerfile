# The demo page on a processor: no root, no network once it is built. docs/demo.md says how to run it.
FROM python:3.13-slim

RUN useradd --create-home --uid 1000 dedim
# PyTorch without CUDA: 4 GB less
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE /source/
COPY model_cards /source/model_cards
COPY spaces /source/spaces
COPY src /source/src
RUN pip install --no-cache-dir "/source[demo]" && rm -r /source

USER dedim
WORKDIR /home/dedim
# the weights are in the package: nothing is downloaded
ENV HF_HUB_OFFLINE=1 GRADIO_SERVER_NAME=0.0.0.0 PYTHONUNBUFFERED=1
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/config', timeout=5)"]
CMD ["dedim", "demo", "--port", "7860"]
