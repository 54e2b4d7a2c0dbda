"""Settings from a file, and as one."""

from dataclasses import fields

import pytest
from neuron_attribution.cli.main import main
from neuron_attribution_server.settings.config import GROUPS, ConfigurationError, ServerConfig, read_config
from neuron_attribution_server.settings.config_file import config_text, read_file


@pytest.fixture
def written(tmp_path):
    """A file with some text; its path."""

    def write(text):
        path = tmp_path / "config.toml"
        path.write_text(text)
        return str(path)

    return write


def test_variables_win_over_the_file_and_flags_over_both(written):
    file = read_file(written('model = "demo"\ngrace = 3\nthreads = 5\nspare_worker = true\n'))
    environment = {"NEURON_ATTRIBUTION_GRACE": "4", "NEURON_ATTRIBUTION_THREADS": "6"}
    config = read_config({"threads": "7"}, environment, file)
    assert config == ServerConfig(model="demo", grace=4.0, threads=7, spare_worker=True)


def test_what_is_printed_is_read_as_the_same(written):
    config = ServerConfig(model='a "b"\\c ü', grace=2.5, tls_certificate="cert", tls_key="key", open_health=False)
    assert read_config({}, {}, read_file(written(config_text(config)))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("maximum_tokns = 3", "sets maximum_tokns, which is no setting; did you mean maximum_tokens?"),
        ("top-k = 3", "sets top-k, which is no setting; "),
        ("zzz = 3", "serve --help has them all"),
        ("grace = ", "is not TOML"),
        ("grace = [1]", r"sets grace to \[1\]; give a text, a number, true or false"),
    ],
)
def test_what_is_no_setting_is_refused_by_name(written, text, message):
    with pytest.raises(ConfigurationError, match=message):
        read_file(written(text))


def test_a_wrong_value_is_told_to_come_from_the_file(written):
    with pytest.raises(ConfigurationError, match="threads in the file: 0 is not a whole number between 1 and 4096"):
        read_config({}, {}, read_file(written('model = "demo"\nthreads = 0')))


def test_a_file_that_is_not_there_is_one_line(capsys):
    assert main(["serve", "--config", "/nowhere.toml"]) == 2
    assert capsys.readouterr().err == (
        "neuron-attribution serve: --config: cannot read /nowhere.toml: No such file or directory\n"
    )


@pytest.mark.parametrize("model", ["/nowhere", "./nowhere", "nowhere.gguf"])
def test_a_model_that_is_not_there_is_refused_at_once(capsys, model):
    assert main(["serve", "--model", model]) == 2
    assert capsys.readouterr().err.startswith(f"neuron-attribution serve: --model: there is no {model}; name a folder")


def test_switches_need_no_value_and_all_is_printed(capsys, written):
    path = written('model = "demo"')
    assert main(["serve", "--config", path, "--spare-worker", "--open-health", "false", "--print-config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(fields(ServerConfig))
    assert {"spare_worker = true", "open_health = false", "# revision is not set"} <= set(lines)


def test_every_group_names_settings_once():
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) <= {setting.name for setting in fields(ServerConfig)}
