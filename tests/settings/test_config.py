"""Settings from flags and the environment, and what is refused."""

import argparse
import os
import subprocess
import sys

import pytest
from neuron_attribution.cli.main import client_variables
from neuron_attribution_server import cli
from neuron_attribution_server.settings.config import (
    ConfigurationError,
    LoadSettings,
    ServerConfig,
    environment_name,
    read_config,
)
from neuron_attribution_server.settings.environment import check_environment


def test_flags_win_over_the_environment_and_the_environment_over_defaults():
    environment = {"NEURON_ATTRIBUTION_DTYPE": "float16", "NEURON_ATTRIBUTION_MAXIMUM_TOP_K": "7"}
    config = read_config({"model": "demo", "dtype": "bfloat16", "threads": None}, environment)
    assert config == ServerConfig(model="demo", dtype="bfloat16", maximum_top_k=7)
    assert config.load_settings == (LoadSettings("demo", dtype="bfloat16"),)


def test_each_device_gets_a_worker_of_its_own():
    config = read_config({"model": "demo", "device": "cuda:0,cuda:1"}, {})
    assert [settings.device for settings in config.load_settings] == ["cuda:0", "cuda:1"]


def test_an_empty_variable_is_an_unset_one():
    assert read_config({"model": "demo"}, {"NEURON_ATTRIBUTION_THREADS": ""}).threads is None


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        ({}, {}, "--model is missing: name the model: demo, a Hub id, a folder, or a GGUF file"),
        ({"model": ""}, {}, "--model: '' is not a text of at least one character"),
        ({"dtype": "int8"}, {}, "--dtype: 'int8' is not one of auto, float32, float16, bfloat16"),
        ({"device": "tpu"}, {}, "--device: 'tpu' is not auto, cpu, cuda, cuda:N or cuda:N,cuda:M"),
        ({"device": "cpu,cuda:1"}, {}, "--device: 'cpu,cuda:1' is not auto, cpu, cuda, cuda:N or cuda:N,cuda:M"),
        ({"heartbeat_timeout": "1"}, {}, "--heartbeat-timeout: 1 is not a number between 2 and 86400"),
        ({"maximum_tokens": "many"}, {}, "--maximum-tokens: 'many' is not a whole number"),
        ({"threads": "0"}, {}, "--threads: 0 is not a whole number between 1 and 4096"),
        ({"grace": "nan"}, {}, "--grace: nan is not a number between 0 and 86400"),
        ({"listen": "50051"}, {}, "--listen: '50051' is not HOST:PORT with a port from 0 to 65535"),
        ({"listen": "localhost:99999"}, {}, "--listen: 'localhost:99999' is not HOST:PORT"),
        ({}, {"NEURON_ATTRIBUTION_LOG_LEVEL": "loud"}, "NEURON_ATTRIBUTION_LOG_LEVEL: 'loud' is not one of"),
        ({"tenant_share": "0"}, {}, "--tenant-share: 0 is not a number between 0.01 and 1"),
        ({"reflection": "maybe"}, {}, "--reflection: 'maybe' is neither true nor false"),
        ({"health_listen": "50052"}, {}, "--health-listen: '50052' is not HOST:PORT"),
        ({"tls_certificate": "c"}, {}, "tls_certificate without tls_key: give both for TLS, or neither"),
        ({"tls_key": "k"}, {}, "tls_key without tls_certificate: give both for TLS, or neither"),
        ({"tls_client_authority": "a"}, {}, "tls_client_authority without tls_certificate and tls_key"),
        ({"queued_tokens": "9"}, {}, "queued_tokens (9) is less than maximum_tokens (4096)"),
    ],
)
def test_wrong_settings_are_refused_by_name(flags, environment, message):
    given = flags if message.startswith("--model") else {"model": "demo", **flags}
    with pytest.raises(ConfigurationError) as refused:
        read_config(given, environment)
    assert message in str(refused.value)


def test_every_bound_of_the_queue_is_reported():
    names = ("queued_requests", "queued_tokens", "batch_tokens", "batch_requests", "maximum_wait", "maximum_age")
    config = ServerConfig(model="demo", tenant_share=0.25, **{name: 5000 + i for i, name in enumerate(names)})
    limits = config.limits(model_tokens=64)
    assert all(getattr(limits, name) == getattr(config, name) for name in (*names, "tenant_share"))


def test_every_setting_has_an_option_and_shows_its_default():
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    text = parser.format_help()
    for name in ServerConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')} " in text
    assert "NEURON_ATTRIBUTION_BATCH_TOKENS" in text


def test_wrong_usage_is_status_two_and_one_line(monkeypatch, capsys):
    monkeypatch.delenv("NEURON_ATTRIBUTION_MODEL", raising=False)
    assert cli.run(argparse.Namespace(model=None, config=None)) == 2
    assert capsys.readouterr().err.count("\n") == 1


CLIENT_VARIABLES = client_variables()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("NEURON_ATTRIBUTION_DTPYE", "did you mean NEURON_ATTRIBUTION_DTYPE?"),
        ("NEURON_ATTRIBUTION_TLS_CERT", "did you mean NEURON_ATTRIBUTION_TLS_CERTIFICATE?"),
        ("NEURON_ATTRIBUTION_ADRESS", "did you mean NEURON_ATTRIBUTION_ADDRESS?"),
        ("NEURON_ATTRIBUTION_COLOUR", "see neuron-attribution serve --help"),
    ],
)
def test_a_variable_nobody_reads_is_refused(monkeypatch, capsys, name, hint):
    monkeypatch.setenv(name, "secret")
    assert cli.run(argparse.Namespace(model="demo")) == 2
    error = capsys.readouterr().err
    assert error == f"neuron-attribution serve: the environment variable {name} means nothing here; unset it ({hint})\n"


@pytest.mark.parametrize(
    "name",
    [
        *(environment_name(name) for name in ServerConfig.__dataclass_fields__),
        *(f"NEURON_ATTRIBUTION_{name}" for name in ("ADDRESS", "TIMEOUT", "TOKEN", "TOKEN_FILE", "TLS_KEY", "TOP_K")),
        "OTHER_VARIABLE",
    ],
)
def test_variables_the_server_or_the_client_reads_are_accepted(name):
    check_environment({name: "x"}, CLIENT_VARIABLES)


@pytest.mark.parametrize("service", ["NEURON_ATTRIBUTION", "NEURON_ATTRIBUTION_METRICS"])
@pytest.mark.parametrize(
    "suffix",
    ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "PORT"]
    + [f"PORT_50051_TCP{part}" for part in ("", "_PROTO", "_PORT", "_ADDR")],
)
def test_what_kubernetes_sets_for_services_of_our_name_is_accepted(service, suffix):
    check_environment({f"{service}_{suffix}": "tcp://10.0.0.1:50051"}, CLIENT_VARIABLES)


def test_help_says_how_a_token_file_is_made():
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    assert "`printf %s TOKEN | sha256sum`" in " ".join(parser.format_help().split())


def test_the_front_end_imports_neither_torch_nor_transformers():
    script = "import sys, neuron_attribution_server.cli; print(*({'torch', 'transformers'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == ""
