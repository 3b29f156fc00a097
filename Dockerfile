# The page and the HTTP interface of unseg_jax, with the weights inside:
#   docker build -t unseg-jax . && docker run --rm -p 8423:8423 unseg-jax
# Other commands take their arguments after the name of the image:
#   docker run --rm -i unseg-jax segment - --format mask < photo.jpg > mask.png
FROM python:3.13-slim

ENV UNSEG_JAX_CACHE=/cache PYTHONUNBUFFERED=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY unseg_jax unseg_jax
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[app,onnx]" \
    && unseg-jax weights get auto \
    && useradd --uid 1000 --create-home segmenter \
    && chown -R segmenter /cache
USER 1000
WORKDIR /home/segmenter
EXPOSE 8423
ENTRYPOINT ["unseg-jax"]
CMD ["serve", "--host", "0.0.0.0"]
