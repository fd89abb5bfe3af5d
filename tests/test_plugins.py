import sys

import pytest
import torch
from torch import nn

from lightning_hypernet import DiversityLoss, Hypernet, hookimpl, hookspecs
from lightning_hypernet.plugins import RESTRICT, PluginError, Plugins


class Spread(DiversityLoss):
    def forward(self, population):
        return -population.gauged.var(0).mean()


class SpreadPlugin:
    @hookimpl
    def hypernet_register_diversity(self, register):
        register("spread", Spread)


MODULE = """
import torch
from lightning_hypernet import DiversityLoss, hookimpl

class {name}(DiversityLoss):
    def forward(self, population):
        return torch.zeros(())

@hookimpl
def hypernet_register_diversity(register):
    register("{name}", {name})
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a plug-in as pip would: a module and a .dist-info folder on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name, text=None, entry=None):
        (tmp_path / f"{name}_module.py").write_text(text or MODULE.format(name=name))
        info = tmp_path / f"{name}-2.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\n")
        (info / "entry_points.txt").write_text(f"[lightning_hypernet]\n{name} = {entry or f'{name}_module'}\n")
        monkeypatch.delitem(sys.modules, f"{name}_module", raising=False)

    return install


def test_every_hook_is_on_one_screen_and_has_a_built_in():
    hooks = {name for name in vars(hookspecs) if name.startswith("hypernet_")}
    implemented = {hook for info in Plugins().listing() for hook in info.hooks}
    assert hooks == implemented
    assert all(vars(hookspecs)[hook].__doc__ for hook in hooks)


def test_a_given_plugin_is_chosen_by_name():
    plugins = Plugins([SpreadPlugin()])
    assert plugins.losses.find("spread") is Spread
    assert "spread" not in Plugins().losses
    hypernet = Hypernet(nn.Linear(3, 2), samples=2)
    hypernet(torch.randn(8, 3))
    assert plugins.build_diversity("spread")(hypernet.population)["spread"] < 0


def test_installed_plugins_load_by_entry_point(install):
    install("apple")
    install("pear")
    plugins = Plugins()
    assert {"apple", "pear"} <= set(plugins.losses)
    listing = {info.name: info for info in plugins.listing()}
    assert listing["apple"].version == "2.5"
    assert listing["apple"].hooks == ("hypernet_register_diversity",)
    assert listing["lightning_hypernet.target.layers"].hooks == ("hypernet_register_filters",)
    assert list(listing) == sorted(listing)


@pytest.mark.parametrize(("allowed", "loaded"), [("apple", {"apple"}), ("p*, other", {"pear"}), ("", set())])
def test_the_environment_restricts_what_is_loaded(install, monkeypatch, allowed, loaded):
    install("apple")
    install("pear")
    monkeypatch.setenv(RESTRICT, allowed)
    assert {"apple", "pear"} & set(Plugins().losses) == loaded
    assert "entropy" in Plugins().losses


def test_a_class_in_place_of_an_instance():
    with pytest.raises(PluginError, match="'SpreadPlugin' failed: it is a class; pass an instance"):
        Plugins([SpreadPlugin])


def failed(name):
    """What the listing and an error of an unknown name say of an installed plug-in that failed."""
    (info,) = [one for one in Plugins().listing() if one.name == name]
    with pytest.raises(
        ValueError, match=rf"installed ones failed \({name}: .*\); LIGHTNING_HYPERNET_PLUGINS says which are loaded"
    ):
        Hypernet(nn.Linear(3, 2), prior="nobody's")
    return info.error


def test_an_installed_class_is_told_when_a_name_is_missing(install):
    install("plum", "from tests.test_plugins import SpreadPlugin", "plum_module:SpreadPlugin")
    assert failed("plum") == "it is a class; pass an instance or a module"


def test_an_installed_plugin_that_cannot_be_imported_stops_nobody(install):
    install("broken", "raise ImportError('no such thing')")
    Hypernet(nn.Linear(3, 2))
    assert failed("broken") == "no such thing"


def test_an_installed_plugin_that_takes_a_name_leaves_nothing_behind(install):
    install("greedy", MODULE.format(name="early") + "    register('entropy', early)\n")
    plugins = Plugins()
    assert "early" not in plugins.losses
    assert plugins.losses.find("entropy") is not None
    assert failed("greedy") == "'entropy' is already a diversity loss, of 'lightning_hypernet.diversity'; choose another name"


def test_two_installed_plugins_of_one_name_are_refused(install, tmp_path):
    install("apple")
    info = tmp_path / "crab-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: crab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lightning_hypernet]\napple = apple_module\n")
    assert "apple" not in Plugins().losses
    assert failed("apple") == "2 installed plug-ins have this name; uninstall all but one"


RULE = """
from torch import nn
from lightning_hypernet import hookimpl


class Own(nn.Linear):
    pass


@hookimpl
def hypernet_register_filters(register):
    register({layer}, lambda module: [])
"""


@pytest.mark.parametrize("layer", ["nn.Conv2d", "nn.Linear", "nn.modules.linear.NonDynamicallyQuantizableLinear"])
def test_rules_for_layers_of_others_that_have_one_are_refused(install, layer):
    before = Plugins().rules
    install("taker", RULE.format(layer=layer))
    assert "already has a filter rule" in failed("taker")
    assert all(rule is before[cls] for cls, rule in Plugins().rules.items())


def test_rules_for_layers_of_ones_own_are_taken(install):
    install("owner", RULE.format(layer="Own"))
    rules = Plugins().rules
    assert sys.modules["owner_module"].Own in rules


def test_unknown_hook():
    class Misspelt:
        @hookimpl
        def hypernet_register_diversities(self, register):
            pass

    with pytest.raises(PluginError, match="'Misspelt' failed: unknown hook 'hypernet_register_diversities'.*the hooks are"):
        Plugins([Misspelt()])


def test_wrong_signature():
    class Wrong:
        @hookimpl
        def hypernet_register_diversity(self, registry):
            pass

    with pytest.raises(PluginError, match="'Wrong' failed: .*registry"):
        Plugins([Wrong()])


def test_no_hook_at_all():
    class Forgotten:
        def hypernet_register_diversity(self, register):
            pass

    with pytest.raises(PluginError, match="'Forgotten' failed: it implements no hook; mark its functions with @hookimpl"):
        Plugins([Forgotten()])


def test_duplicate_name():
    class Rival:
        @hookimpl
        def hypernet_register_diversity(self, register):
            register("entropy", Spread)

    with pytest.raises(PluginError, match="'Rival' failed: 'entropy' is already a diversity loss, of 'lightning_hypernet"):
        Plugins([Rival()])


@pytest.mark.parametrize("wrong", [Spread(), nn.Linear, 3])
def test_only_diversity_losses_are_registered(wrong):
    class Confused:
        @hookimpl
        def hypernet_register_diversity(self, register):
            register("confused", wrong)

    with pytest.raises(PluginError, match="'Confused' failed: the diversity loss 'confused' must be a subclass"):
        Plugins([Confused()])


def test_a_plugin_that_raises_is_named():
    class Fragile:
        @hookimpl
        def hypernet_register_filters(self, register):
            raise KeyError("lost")

    with pytest.raises(PluginError, match="'Fragile' failed: 'lost'"):
        Plugins([Fragile()])


def test_filter_rules_are_registered_for_modules():
    class Confused:
        @hookimpl
        def hypernet_register_filters(self, register):
            register("Linear", lambda module: [])

    with pytest.raises(PluginError, match="a filter rule is registered for a class of modules, not for 'Linear'"):
        Plugins([Confused()])


def test_given_plugins_keep_their_order():
    class Other:
        @hookimpl
        def hypernet_register_diversity(self, register):
            register("other", Spread)

    assert list(Plugins([SpreadPlugin(), Other()]).losses)[-2:] == ["spread", "other"]
    assert list(Plugins([Other(), SpreadPlugin()]).losses)[-2:] == ["other", "spread"]
