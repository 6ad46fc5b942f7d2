# Training, upgrading and evaluation; serving has images of its own, see serving/README.md.
#
#   docker build -t fct_tf .
#   docker run --rm -v "$PWD/runs:/home/fct/runs" -v "$PWD/data:/home/fct/data" fct_tf \
#       study --config=configs/quickstart.py --workdir=runs/glyphs
FROM python:3.11-slim-bookworm

ARG EXTRAS=serving,hdf5,stores
WORKDIR /src
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY fct_tf fct_tf
RUN pip install --no-cache-dir --constraint constraints.txt ".[$EXTRAS]"

RUN useradd --create-home fct
USER fct
WORKDIR /home/fct
COPY --chown=fct configs configs
ENV TFDS_DATA_DIR=/home/fct/data
ENTRYPOINT ["fct"]
CMD ["--help"]
