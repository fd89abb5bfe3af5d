"""The project's pluggy markers: `hookspec` declares a hook, `hookimpl` implements one."""

from __future__ import annotations

import pluggy

PROJECT = "lightning_hypernet"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
