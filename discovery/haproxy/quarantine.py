"""Keeps what HAProxy refused of single services away from all others. Pure.

A service whose section is refused goes on in the shape it had, with the instances it has now; one that had
none, or is refused in that too, is left out. It is tried again when what was refused changes.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from discovery.catalog import Consequence, Problem
from discovery.haproxy.certificates import Certificate
from discovery.haproxy.layout import Layout
from discovery.haproxy.model import Backend, Listener, Model, Shape
from discovery.options import shaping
from discovery.schema import service_prefix


class _Good(NamedTuple):
    """What HAProxy is known to take."""

    shape: Shape
    listener: Listener | None


@dataclass(frozen=True, slots=True)
class _Refusal:
    shape: Shape
    listener: Listener | None
    instead: "_Good | None"
    reason: str


class Quarantine:
    """The services that are in quarantine, each with what was refused and why. Not thread-safe."""

    def __init__(self) -> None:
        self._refusals: dict[str, _Refusal] = {}
        # By the name of a service, its backend as it is wanted and as it is instead.
        self._changed: dict[str, tuple[Backend, Backend]] = {}
        # By the name of a certificate, the one that was refused and the one in its place.
        self._certificates: dict[str, tuple[Certificate, Certificate | None]] = {}

    def admit(self, model: Model) -> Model:
        """The model with what is known to be refused replaced or left out, and a problem for each."""
        return self._admit_services(self._admit_certificates(model))

    def _admit_services(self, model: Model) -> Model:
        refused = {
            name: refusal
            for name, refusal in self._refusals.items()
            if name in model.backends
            and refusal.shape == model.backends[name].shape
            and refusal.listener == _listener(model, name)
        }
        self._refusals = refused
        self._changed = {name: each for name, each in self._changed.items() if name in refused}
        if not refused:
            return model
        kept = model.without_services({name for name, each in refused.items() if each.instead is None})
        instead = {name: each.instead for name, each in refused.items() if each.instead is not None}
        changed = {name: self._in_shape(kept.backends[name], good.shape) for name, good in instead.items()}
        problems = (_problem(name, refusal) for name, refusal in refused.items())
        others = [each for each in kept.listeners if each.service not in instead]
        taken = {each.port for each in others} | kept.ports.keys()
        former = [good.listener for good in instead.values() if good.listener is not None]
        listeners = [*others, *(each for each in former if each.port not in taken)]
        return replace(
            kept,
            backends={**kept.backends, **changed},
            listeners=tuple(sorted(listeners, key=lambda each: each.port)),
            problems=(*model.problems, *problems),
        )

    def _in_shape(self, backend: Backend, shape: Shape) -> Backend:
        """The backend in another shape: the same object for the same backend, so that it is no change."""
        known = self._changed.get(backend.name)
        if known is None or known[0] is not backend or known[1].shape != shape:
            service, refused = backend.service, shaping(backend.service.options)
            # A template of the user's own may look at them as well.
            options = {key: text for key, text in service.options.items() if key not in refused}
            service = replace(service, scheme=shape.mode, options=options | dict(shape.options))
            known = self._changed[backend.name] = backend, replace(backend, service=service, shape=shape)
        return known[1]

    def refuse(self, reasons: Mapping[str, str], model: Model, running: Layout | None) -> bool:
        """Take up services of ``model``, as it was before ``admit``; whether that makes a difference.

        ``running`` tells which shape each has now.
        """
        changed = False
        for name, reason in reasons.items():
            backend = model.backends.get(name)
            if backend is None:
                continue
            section = running.section_of(name) if running else None
            known = self._refusals.get(name)
            listener = _listener(model, name)
            instead = None
            if running is not None and section is not None and known is None:
                own = next((each for each in running.listeners if each.service == name), None)
                instead = _Good(section.shape, own)
            if instead == (backend.shape, listener):
                instead = None
            if known is not None and known.instead is None:
                continue
            self._refusals[name] = _Refusal(backend.shape, listener, instead, reason)
            changed = True
        return changed

    def refuse_certificates(self, names: Collection[str], model: Model, running: Layout | None) -> bool:
        """Take up certificates of ``model``; whether that makes a difference."""
        former = running.certificates if running else {}
        changed = False
        for name in names:
            refused, instead = model.certificates.get(name), former.get(name)
            if refused is None or name in self._certificates:
                continue
            self._certificates[name] = refused, None if instead == refused else instead
            changed = True
        return changed

    def _admit_certificates(self, model: Model) -> Model:
        known = {
            name: (refused, instead)
            for name, (refused, instead) in self._certificates.items()
            if model.certificates.get(name) == refused
        }
        self._certificates = known
        if not known:
            return model
        kept = {name: each for name, each in model.certificates.items() if name not in known}
        kept |= {name: instead for name, (_, instead) in known.items() if instead is not None}
        problems = (
            Problem(
                None,
                name,
                "HAProxy refuses this certificate",
                "left out" if instead is None else "kept at its last good value",
            )
            for name, (_, instead) in known.items()
        )
        return replace(model, certificates=dict(sorted(kept.items())), problems=(*model.problems, *problems))

    def clear(self) -> None:
        """Try everything again, as when a template has changed."""
        self._refusals.clear()
        self._certificates.clear()


def _listener(model: Model, name: str) -> Listener | None:
    port = model.backends[name].service.host_port
    return next((each for each in model.listeners if each.port == port), None) if port is not None else None


def _problem(name: str, refusal: _Refusal) -> Problem:
    consequence: Consequence = "left out" if refusal.instead is None else "kept at its last good value"
    return Problem(name, service_prefix(name).rstrip("/"), refusal.reason, consequence)
