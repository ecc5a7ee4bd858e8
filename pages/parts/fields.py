"""Widgets for the parameters of a task: each shows what is in force, and tells what a person sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st


class Fields:
    """`key` gives a parameter's place in the session, `change` takes what was set."""

    def __init__(self, key: Callable[[str], str], change: Callable[[str, Any], None]) -> None:
        self.key, self._change = key, change

    def changed(self, name: str) -> Callable[[], None]:
        """What to call when the widget of this parameter was used."""
        key = self.key(name)
        return lambda: self._change(name, st.session_state[key])

    def number(
        self,
        name: str,
        label: str,
        now: Mapping[str, Any],
        *,
        step: Any,
        minimum: Any,
        maximum: Any = None,
        text: str | None = None,
    ) -> None:
        """Whole where `step` is."""
        key = self.key(name)
        st.session_state[key] = type(step)(now[name])
        st.number_input(
            label,
            step=step,
            min_value=type(step)(minimum),
            max_value=maximum,
            key=key,
            on_change=self.changed(name),
            help=text,
            format="%g" if isinstance(step, float) else None,
        )

    def optional(self, name: str, label: str, now: Mapping[str, Any], text: str) -> None:
        """A number that may be left out."""
        key = self.key(name)
        st.session_state[key] = None if now[name] is None else float(now[name])
        st.number_input(
            label,
            min_value=0.0,
            key=key,
            value=None,
            placeholder="–",
            on_change=self.changed(name),
            help=text,
            format="%g",
        )

    def optional_whole(self, name: str, label: str, now: Mapping[str, Any], text: str) -> None:
        """A whole number from 1 that may be left out."""
        key = self.key(name)
        st.session_state[key] = now[name]
        st.number_input(
            label,
            min_value=1,
            step=1,
            key=key,
            value=None,
            placeholder="–",
            on_change=self.changed(name),
            help=text,
        )

    def toggle(self, name: str, label: str, now: Mapping[str, Any], text: str | None = None) -> None:
        key = self.key(name)
        st.session_state[key] = bool(now[name])
        st.toggle(label, key=key, on_change=self.changed(name), help=text)

    def select(
        self, name: str, label: str, options: Mapping[str, str], now: Mapping[str, Any], text: str | None = None
    ) -> None:
        """One of `options`, which are shown by their words."""
        key = self.key(name)
        st.session_state[key] = now[name]
        st.selectbox(
            label, list(options), format_func=lambda k: options[k], key=key, on_change=self.changed(name), help=text
        )


def seed(key: str, place: str, now: int, text: str) -> None:
    """The seed, kept at `place` of the session."""
    st.session_state[key] = now
    st.number_input(
        "Seed",
        min_value=0,
        step=1,
        key=key,
        help=text,
        on_change=lambda: st.session_state.update({place: st.session_state[key]}),
    )
