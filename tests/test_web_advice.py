"""What the page says before a job is started: models, words, memory, time, and motions as clips."""

import re
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

import recast
from recast.backbones.wan import MENAGERIE_DIT
from recast.errors import BadCall, UnknownName
from recast.pipeline.config import DEFAULT_BACKBONE
from recast.pipeline.run import learn
from recast.web import advice, models, views, wording
from recast.web.config import ServeConfig
from recast.web.limits import Limits
from recast.web.models import Models
from recast.web.page_events import PageEvents
from recast.web.requests import as_json
from recast.web.service import Service

from .web_servers import gaussian, server_folder

ASSETS = Path(recast.__file__).parent / "assets"
SHIPPED = {path.parent.name for path in ASSETS.glob("*/model_index.json")}


@pytest.fixture
def service(tmp_path: Path) -> Service:
    root = server_folder(tmp_path / "server").root
    return Service(ServeConfig(folder=root, limits=Limits(free_gb=0), private=True))


def test_models_that_ship_stand_first_and_downloads_last() -> None:
    choices = Models(["other/model"]).choices()
    names = [name for _, name in choices]
    assert names[0] == DEFAULT_BACKBONE
    count = names.index("other/model")
    assert {name.partition("@")[0] for name in names[:count]} == SHIPPED
    missing = ["not downloaded" in label for label, _ in choices[count + 1 :]]
    assert missing == sorted(missing)
    assert ("gaussian", "gaussian") in choices[count + 1 :]


def test_a_model_is_described_by_its_own_line_or_by_the_card_in_its_folder() -> None:
    assert "in four steps" in models.description("shapes-dit@4steps")
    assert models.description("cogvideox-5b").startswith("CogVideoX with 5 billion")
    assert models.description(str(MENAGERIE_DIT)) == "menagerie-dit: animals and vehicles"
    assert models.description("nobody/nothing") == ""


def test_words_that_a_model_does_not_know_are_said_before_the_start() -> None:
    notes = models.prompt_notes("shapes", ["a red zebra", ""])
    assert notes == ["The shapes model does not know: zebra."]
    assert models.prompt_notes("shapes", ["a red circle", "a blue square"]) == []
    assert "shorten" in " ".join(models.prompt_notes("shapes", ["red " * 200]))
    assert "zebra" in advice.prompts("shapes", ["a zebra"])


def test_the_examples_of_the_first_page_are_prompts_that_their_models_know() -> None:
    for example in wording.EXAMPLES:
        assert example["model"] in SHIPPED
        assert models.prompt_notes(example["model"], [example["prompt"]]) == []


def test_memory_and_time_are_forecast_before_any_run() -> None:
    clip, weights, memory, time = models.forecast_lines("shapes", "dmt")
    assert clip == "Clip: 16 frames of 64×64, “Device: cpu”." or "cuda" in clip
    assert re.fullmatch(r"Weights: \S+ MiB\.", weights)
    assert re.fullmatch(r"Memory: \S+ [MG]iB; this machine has \S+ GiB: fits\.", memory)
    assert time.startswith("Forecast of the time: about ")
    assert "for each result" in time


def test_a_method_that_does_not_run_on_a_model_is_said() -> None:
    (line,) = models.forecast_lines("shapes-dit", "motiondirector")
    assert line.startswith("motiondirector does not run on this model. Choose another")


def test_the_weights_of_a_model_that_is_not_here_are_downloaded() -> None:
    weights = models.forecast_lines("wan", "dmt")[1]
    assert "downloaded when the first job starts" in weights


def test_another_comparison_is_refused_and_no_name_shows_no_job(service: Service) -> None:
    service.submit(gaussian(), "somebody")
    for batch in ("", "0" * 24):
        with pytest.raises(BadCall, match="comparison does not exist"):
            views.comparison(service, batch)


def test_a_job_names_its_clip_and_its_comparison(service: Service) -> None:
    batch = service.compare(gaussian(), ["unguided"], "me")
    history = views.history(service, "me")
    assert "motion of sample dots" in history
    assert f'href="/?compare={batch}"' in history
    assert "motion of sample dots" in views.comparison(service, batch)


def test_a_comparison_says_why_a_score_is_missing(service: Service) -> None:
    """The second job has no score of the text, and says why; the third has none at all."""
    batch = "b" * 24
    score = {"name": "text_similarity", "title": "text similarity", "better": "higher"}
    objection = "CLIP shapes does not know the words zebra; choose another"
    for scores in (
        [{**score, "value": 0.5, "reason": "", "first": True}],
        [{**score, "value": None, "reason": objection, "first": True}],
        [],
    ):
        service.store.add("transfer", "me", as_json(gaussian()), batch=batch)
        job = service.store.claim("w")
        assert job is not None
        result = {"results": [], "seeds": [], "scores": [scores]}
        service.store.finish(job, "done", result=result)
    table = views.comparison(service, batch).partition("<table")[2]
    cells = re.findall("<td>(.*?)</td>", table)
    assert cells == [
        "0.500",
        '–<span class="rc-help rc-cause">CLIP shapes does not know the words zebra.</span>',
        "–",
        "higher",
    ]


@pytest.fixture
def motion(service: Service) -> str:
    """The name of a motion that was learned on the gaussian model."""
    request = gaussian(method="sdedit")
    run = request.run_config(service.folder, "0" * 24)
    backbone = recast.load("gaussian")
    path = service.folder.motion("ab" * 12)
    path.parent.mkdir(parents=True)
    learn(request.learn_config(service.folder, path, run), backbone).run()
    return f"motion:{path.stem}"


def test_a_motion_brings_its_model_and_hides_the_cut(service: Service, motion: str) -> None:
    events = PageEvents(service)
    assert events.follow_motion(motion, "shapes") == "gaussian"
    assert events.follow_motion(motion, "gaussian") == gr.skip()
    assert events.follow_motion("sample:dots", "shapes") == gr.skip()
    text, canvas, _, cut = events.film(motion, 0.0, "crop", "gaussian", "", "{}")
    assert "sdedit learned on gaussian" in text
    assert canvas == ""
    assert cut["visible"] is False
    assert events.film("sample:dots", 0.0, "crop", "gaussian", "", "{}")[3]["visible"] is True


def test_general_settings_stay_when_another_method_is_chosen(service: Service) -> None:
    events = PageEvents(service)
    written = '{"config": {"inner_steps": "7"}, "draw": {"steps": "5"}}'
    shown = events.first_shown()
    call: tuple[Any, ...] = ("sdedit", "", "shapes", "sample:dots", shown, None, written)
    _, form, now, chosen, estimate = events.choose_method(*call)
    assert now[0] == "sdedit"
    assert re.search(r'name="draw.steps"[^>]*value="5"', form)
    assert "inner_steps" not in form
    assert "being estimated" in estimate
    again = events.choose_method("sdedit", "", "shapes", "", now, chosen, written)
    assert (again[1], again[4]) == (gr.skip(), gr.skip())  # nothing is shown or estimated again
    assert again[3] == chosen


def test_notes_of_a_model_that_is_not_offered_are_refused(service: Service) -> None:
    events = PageEvents(service)
    with pytest.raises(gr.Error, match="Unknown model"):
        events.prompt_note("a cat", "", "/etc")
    with pytest.raises(UnknownName):
        service.models.check("/etc")
