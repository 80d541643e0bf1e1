"""Code that a configuration names is checked before it is called."""

from pathlib import Path

import pytest

from crux.config.errors import UserError
from crux.config.targets import call_function, check_target, make_object


def test_nothing_is_called_unless_it_is_a_class_of_the_right_kind(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(UserError, match=r"callbacks\.x\._target_=pathlib\.Path\.mkdir: .*"):
        make_object({"_target_": "pathlib.Path.mkdir", "_args_": [made]}, key="callbacks.x", base=Exception)
    with pytest.raises(UserError, match=r"must be derived from builtins\.Exception"):
        make_object({"_target_": "collections.OrderedDict"}, key="callbacks.x", base=Exception)
    with pytest.raises(UserError, match="it needs _target_=<its class>"):
        make_object({"every": 3}, key="callbacks.x", base=Exception)
    assert not made.exists()
    assert isinstance(make_object({"_target_": "crux.config.errors.UserError"}, key="x", base=Exception), UserError)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("load", "must be a dotted name"),
        ("my package.load", "must be a dotted name"),
        ("os.system", "not a part of Python"),
        ("crux_no_such_package.load", "there is no package crux_no_such_package"),
    ],
)
def test_a_name_that_cannot_be_meant_is_rejected_without_an_import(target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_target(target, key="model._target_", what="a function")


def test_a_function_with_other_arguments_is_not_called() -> None:
    with pytest.raises(
        UserError, match=r"model\._target_=crux\.config\..*: does not take .*missing a required argument: 'key'"
    ):
        call_function("crux.config.targets.check_target", "target", key="model._target_", what="a function")
    assert call_function("crux.config.quoting.quote_override", "loss", "e2e", key="x") == "loss=e2e"


def test_a_class_that_does_not_exist_is_one_error_and_hydra_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"callbacks\.x\._target_=crux\.config\.errors\.Nope: cannot be imported"):
        make_object({"_target_": "crux.config.errors.Nope"}, key="callbacks.x", base=Exception)
    assert caplog.records == []


def test_a_name_of_an_installed_package_is_accepted() -> None:
    check_target("lightning.pytorch.callbacks.Timer", key="callbacks.x._target_", what="a class")
