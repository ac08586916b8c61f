"""Services that HAProxy refused, kept away from all others."""

from dataclasses import replace

from discovery.haproxy.certificates import Certificate
from discovery.haproxy.layout import place
from discovery.haproxy.model import Model
from discovery.haproxy.quarantine import Quarantine
from tests.unit.test_haproxy_plan import model, service, started

BAD = {"balance": "leastconn"}


def refused(wanted: Model, *running: object) -> Quarantine:
    """One that has refused service ``web`` of a model, while a worker ran what is given."""
    quarantine = Quarantine()
    layout = place(running[0]) if running and isinstance(running[0], Model) else None
    assert quarantine.refuse({"web": "HAProxy refuses it"}, wanted, layout)
    return quarantine


def test_nothing_refused_is_the_very_same_model() -> None:
    wanted = model(service("web"))
    assert Quarantine().admit(wanted) is wanted


def test_a_new_service_is_left_out_with_all_that_leads_to_it() -> None:
    web = service("web", host_port=9000, options=BAD | {"hosts": "x.example.com"})
    wanted = model(web, service("api"))
    admitted = refused(wanted).admit(wanted)
    assert list(admitted.backends) == ["api"]
    assert (admitted.listeners, admitted.hosts) == ((), {})
    (problem,) = admitted.problems
    assert (problem.service, problem.reason, problem.consequence) == (
        "web",
        "HAProxy refuses it",
        "left out",
    )


def test_one_that_ran_keeps_its_shape_and_has_its_new_instances() -> None:
    before = model(service("web", "10.0.0.1:80"))
    wanted = model(service("web", "10.0.0.1:80", options=BAD))
    quarantine = refused(wanted, before)
    later = model(service("web", "10.0.0.2:80", options=BAD))
    admitted = quarantine.admit(later).backends["web"]
    assert admitted.shape == before.backends["web"].shape
    assert [server.address for server in admitted.servers] == ["10.0.0.2:80"]
    assert quarantine.admit(later).problems[-1].consequence == "kept at its last good value"


def test_it_is_tried_again_when_what_was_refused_changes() -> None:
    wanted = model(service("web", options=BAD))
    quarantine = refused(wanted)
    mended = model(service("web", options={"balance": "source"}))
    assert quarantine.admit(mended) is mended
    assert quarantine.admit(wanted) is wanted, "and once more, for it may be good by now"


def test_one_that_is_refused_as_it_was_is_left_out_in_the_end() -> None:
    before = model(service("web"))
    wanted = model(service("web", options=BAD))
    layout = place(before)
    quarantine = refused(wanted, before)
    assert "web" in quarantine.admit(wanted).backends
    assert quarantine.refuse({"web": "still"}, wanted, layout)
    assert "web" not in quarantine.admit(wanted).backends
    assert not quarantine.refuse({"web": "still"}, wanted, layout), "there is nothing left to try"


def test_a_service_that_is_gone_is_forgotten() -> None:
    wanted = model(service("web", options=BAD))
    quarantine = refused(wanted)
    quarantine.admit(model())
    assert quarantine.admit(wanted) is wanted


def test_names_that_are_no_services_make_no_difference() -> None:
    assert not Quarantine().refuse({"nobody": "?"}, model(service("web")), started())


def test_a_certificate_keeps_its_former_text_or_is_left_out() -> None:
    good, bad = Certificate("a", "good", 0, 1, "AB"), Certificate("a", "bad", 0, 1, "CD")
    new = Certificate("b", "bad too", 0, 1, "EF")
    running = place(replace(model(), certificates={"a": good}))
    wanted = replace(model(), certificates={"a": bad, "b": new})
    quarantine = Quarantine()
    assert quarantine.refuse_certificates({"a", "b"}, wanted, running)
    admitted = quarantine.admit(wanted)
    assert admitted.certificates == {"a": good}
    assert {each.subject: each.consequence for each in admitted.problems} == {
        "a": "kept at its last good value",
        "b": "left out",
    }
    assert not quarantine.refuse_certificates({"a"}, wanted, running)
    renewed = replace(model(), certificates={"a": Certificate("a", "new", 0, 1, "01")})
    assert quarantine.admit(renewed) is renewed
