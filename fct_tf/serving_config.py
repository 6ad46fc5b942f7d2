"""Writes the files of a TF Serving deployment and moves its labels.

At first it makes all of them from the published models, each served at its highest version. With
--overwrite it makes them anew and keeps the versions and labels of the models.config there:

  python -m fct_tf.serving_config --models=models --output=deployment

Then it is one step of a rollout a call, and changes models.config and the ConfigMap alone:

  python -m fct_tf.serving_config --models=models --output=deployment --load=fct:2
  python -m fct_tf.serving_config --models=models --output=deployment --canary=fct:2
  python -m fct_tf.serving_config --models=models --output=deployment --stable=fct:2
  python -m fct_tf.serving_config --models=models --output=deployment --unload=fct:1

serving/README.md says what to wait for in between, and how to go back.
"""

from absl import flags

from fct_tf.common import cli, flag_groups
from fct_tf.common.errors import InputError

STEPS = {
    "load": "Serve this version too.",
    "canary": "Let the label canary point to this version, which is loaded already.",
    "stable": "Let the label stable point to this version, which is loaded already.",
    "unload": "No longer serve this version, which no label needs.",
}


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    read = flag_groups.Group(values, flag_groups.READ)
    read.required("models", "Directory of the published models, MODEL/VERSION/.")
    steps = flag_groups.Group(values, "One step of a rollout:")
    for name, text in STEPS.items():
        steps.list(name, f"{text} MODEL:VERSION, several by commas.")
    written = flag_groups.Group(values, flag_groups.WRITTEN)
    written.required("output", "Directory of the files.")
    server = flag_groups.Group(values, "About the server:")
    text = "Where the server finds what is in --models; /models if not given."
    server.string("base_path", text)
    server.integer("cores", "Processor cores of the server.", 2, 1)
    server.integer(
        "memory_gib",
        "Memory limit in GiB; 0: two versions of every model and half as much again, at least 2.",
        0,
        0,
    )
    text = "Let a label name a transformation and query encoders whose spaces do not fit."
    flag_groups.define_space_mismatch(values, text)
    flag_groups.define_overwrite(values)


def main(values: flags.FlagValues) -> None:
    """Writes the files that the flags ask for."""
    steps = {name: _steps(values, name) for name in STEPS}
    if values.base_path and not values.base_path.startswith("/") and "://" not in values.base_path:
        raise InputError(f"--base_path={values.base_path}: the server wants an absolute path")
    try:  # What follows needs the extra serving.
        from fct_tf.serving import configuration
    except ImportError as error:
        raise InputError(
            f"this command needs the extra serving ({error.name} is missing): "
            "pip install 'fct_tf[serving]'"
        ) from None
    changes = configuration.Steps(**steps)
    deploy = configuration.deploy
    models = deploy(**cli.arguments(values, deploy, steps=changes))
    for name in sorted(models):
        labels = ", ".join(f"{label} {version}" for label, version in models[name].labels.items())
        versions = ", ".join(map(str, models[name].versions))
        print(f"{name}: versions {versions}; {labels or 'no labels'}")


def _steps(values: flags.FlagValues, name: str) -> list[tuple[str, int]]:
    model_versions = []
    for given in values[name].value or ():
        model, separator, version = given.strip().rpartition(":")
        if not separator or not model or not version.isdecimal():
            raise InputError(f"--{name}={given}: MODEL:VERSION is wanted, such as fct:2")
        model_versions.append((model, int(version)))
    return model_versions


if __name__ == "__main__":
    cli.run(__doc__, main, define_flags)
