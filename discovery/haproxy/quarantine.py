"""Keeps what HAProxy refused of single services away from all others. Pure.

A service whose section is refused goes on in the shape it had, with the instances it has now; one that had
none, or is refused in that too, is left out. It is tried again when what was refused changes.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from discovery.catalog import Consequence, Problem
from discovery.haproxy.certificates import Certificate
from discovery.haproxy.layout import Layout
from discovery.haproxy.model import Listener, Model, Shape
from discovery.schema import service_prefix


@dataclass(frozen=True, slots=True)
class _Refusal:
    shape: Shape
    listener: Listener | None
    instead: Shape | None
    reason: str


class Quarantine:
    """The services that are in quarantine, each with what was refused and why. Not thread-safe."""

    def __init__(self) -> None:
        self._refusals: dict[str, _Refusal] = {}
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
        if not refused:
            return model
        kept = model.without_services({name for name, each in refused.items() if each.instead is None})
        changed = {
            name: replace(kept.backends[name], shape=refusal.instead)
            for name, refusal in refused.items()
            if refusal.instead is not None
        }
        problems = (_problem(name, refusal) for name, refusal in refused.items())
        return replace(kept, backends={**kept.backends, **changed}, problems=(*model.problems, *problems))

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
            instead = section.shape if section is not None and known is None else None
            if instead == backend.shape:
                instead = None
            if known is not None and known.instead is None:
                continue
            self._refusals[name] = _Refusal(backend.shape, _listener(model, name), instead, reason)
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
