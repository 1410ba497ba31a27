"""Configuration of serve: the file for `serve deploy`, the deployments, and mistakes that are told at once."""

import hashlib
import socket
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from ray import cloudpickle
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from audiodiff_core.checkpoint import load_model
from audiodiff_platform.serve.application import (
    application,
    facts_of,
    generation_settings,
    ingress_settings,
    serve_yaml,
)
from audiodiff_platform.serve.job import serve, served
from audiodiff_platform.serve.options import ServeOptions

ROOT = Path(__file__).parents[2]


def test_the_committed_file_is_what_the_code_writes() -> None:
    committed = (ROOT / "cluster" / "serve.yaml").read_text()
    assert committed == serve_yaml(ServeOptions(model=("loops=/YOUR-SHARE/model",)))


def test_the_model_of_the_installation_can_be_served() -> None:
    (facts,) = facts_of(ServeOptions(model=("loops=builtin:loops",)))
    assert (facts.name, facts.path, facts.digest) == ("loops", "builtin:loops", load_model("builtin:loops").digest)


def test_ray_serve_takes_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    stated = {"model": ("a=/share/a", "b=s3://bucket/b"), "min_replicas": 0, "gpus_per_replica": 0.25, "port": 8_001}
    assert serve(ServeOptions(**stated, yaml=str(file))) == {"verb": "serve", "models": ["a", "b"], "yaml": str(file)}
    config = yaml.safe_load(file.read_text())
    schema = ServeDeploySchema.model_validate(config)
    assert config.keys() <= ServeDeploySchema.model_fields.keys()
    (entry,) = config["applications"]
    assert entry.keys() <= ServeApplicationSchema.model_fields.keys()
    assert ServeOptions.model_validate(schema.applications[0].args) == ServeOptions(**stated)
    module, _, name = schema.applications[0].import_path.partition(":")
    assert getattr(import_module(module), name) is application


def test_the_deployments_follow_the_options(model: Path) -> None:
    options = ServeOptions(
        model=(f"tiny={model}",), min_replicas=0, max_replicas=2, gpus_per_replica=0.5, request_timeout_s=50
    )
    for on_gpu, batch, gpus in ((False, 4, 0), (True, 32, 0.5)):
        settings = generation_settings(options, on_gpu)
        scaling = settings["autoscaling_config"]
        assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (0, 2, batch)
        assert settings["max_ongoing_requests"] > batch * (1 + options.queue_batches)
        assert settings["graceful_shutdown_timeout_s"] > options.request_timeout_s + options.max_wait_s
        resources = {name: settings["ray_actor_options"][name] for name in ("num_cpus", "num_gpus")}
        assert resources == {"num_cpus": 1, "num_gpus": gpus}
    for nodes, least in ((1, 1), (2, 2), (9, 2)):
        scaling = ingress_settings(options, nodes)["autoscaling_config"]
        assert (scaling.min_replicas, scaling.max_replicas > 2) == (least, True)
    limited = options.model_copy(update={"concurrent_requests": 3})
    scaling = ingress_settings(limited, 2)["autoscaling_config"]
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 1), "one replica counts the requests of all"
    (facts,) = facts_of(options)
    assert (facts.digest, facts.encoding_dim) == (load_model(model).digest, None)


def test_beyond_loopback_it_does_not_start_without_a_key(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUDIODIFF_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "example.com"):
        with pytest.raises(ValueError, match=r"set AUDIODIFF_API_KEY"):
            serve(ServeOptions(model=(f"tiny={model}",), host=host))


def test_a_key_is_in_no_argument_of_a_deployment(local_ray: None, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIODIFF_API_KEY", "a secret key")
    arguments = cloudpickle.dumps(application(ServeOptions(model=(f"tiny={model}",))))
    assert b"a secret key" not in arguments
    assert hashlib.sha256(b"a secret key").digest() not in arguments, "a hash without a salt is found in tables"
    missing = ServeOptions(model=(f"tiny={model}",), key_file="missing")
    with pytest.raises(ValueError, match="key_file missing cannot be read"):
        application(missing)


def test_an_address_that_cannot_be_used_is_an_error_at_once(
    local_ray: None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIODIFF_API_KEY", "key")
    models = (f"tiny={model}",)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        options = ServeOptions(model=models, port=port, max_replicas=1)
        with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 is taken"), served(options):
            pass
    foreign = ServeOptions(model=models, host="192.0.2.1", max_replicas=1)
    with pytest.raises(ValueError, match=r"192\.0\.2\.1 is not an address of this machine"), served(foreign):
        pass
    many = ServeOptions(model=models, max_replicas=1_000)
    with pytest.raises(ValueError, match="max_replicas 1000 needs"), served(many):
        pass


def test_options_that_contradict_are_refused() -> None:
    for entry in ("path/only", "=path", "bad/name=path", "name=", "модель=path", "-=path"):
        with pytest.raises(ValueError, match="NAME=PATH"):
            ServeOptions(model=(entry,))
    for origin in ("*", "example.com", "https://example.com/", "https://*.example.com", "null"):
        with pytest.raises(ValueError, match="must be https://HOST"):
            ServeOptions(model=("a=b",), allow_origin=(origin,))
    with pytest.raises(ValueError, match="max_replicas 1: must be at least min_replicas 2"):
        ServeOptions(model=("a=b",), min_replicas=2, max_replicas=1)
