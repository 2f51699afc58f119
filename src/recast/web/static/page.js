// The script of the page: it puts views in place, follows running jobs, and plays results frame by
// frame. Views are HTML from the server; this script holds no text of its own but states of buttons.
"use strict";

(() => {
  const POLL = 500;

  const get = async (url) => {
    const answer = await fetch(url, { headers: { Accept: "application/json, text/html" } });
    if (!answer.ok) throw Object.assign(new Error(await words(answer)), { status: answer.status });
    return answer;
  };

  const words = async (answer) => {
    const text = await answer.text();
    try {
      return JSON.parse(text).error || text;
    } catch {
      return text;
    }
  };

  const post = async (url, body) => {
    const answer = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body ?? {}),
    });
    if (!answer.ok) throw new Error(await words(answer));
    return answer.json();
  };

  const complain = (place, error) => {
    const line = document.createElement("p");
    line.className = "rc-error";
    line.setAttribute("role", "alert");
    line.textContent = error.message;
    place.prepend(line);
  };

  // --- views -------------------------------------------------------------------------------------

  const load = async (view) => {
    view.setAttribute("aria-busy", "true");
    const job = view.dataset.recastJob;
    const query = view.dataset.query ? `?${view.dataset.query}` : "";
    try {
      const url = job ? `/jobs/${job}/view` : `/views/${view.dataset.recastView}${query}`;
      view.innerHTML = await (await get(url)).text();
    } catch (error) {
      view.innerHTML = "";
      complain(view, error);
    }
    view.setAttribute("aria-busy", "false");
    const batch = new URLSearchParams(view.dataset.query).get("batch");
    if (job || batch) {
      const place = new URL(location.href);
      place.search = job ? `?job=${job}` : `?compare=${batch}`;
      history.replaceState(null, "", place);
    }
    view.querySelectorAll("[data-recast-player]").forEach(player);
    const live = view.querySelector("[data-recast-live]");
    if (live) follow(view, live);
    const refresh = view.querySelector("[data-recast-refresh]");
    if (refresh) setTimeout(() => view.isConnected && load(view), +refresh.dataset.recastRefresh);
  };

  const shown = (element) => element.offsetParent !== null;

  const reveal = (view) => {
    // A job that begins out of sight: below the fields on a phone, or above a long form of settings.
    const top = view.getBoundingClientRect().top;
    if (top >= 0 && top < 0.6 * innerHeight) return;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    view.scrollIntoView({ behavior: calm ? "auto" : "smooth" });
  };

  const dismissErrors = () => // they were about a job that could not start
    document.querySelectorAll("[data-testid=toast-close]").forEach((button) => button.click());

  let panelOpen = false; // the form of settings is replaced when another method is chosen
  document.addEventListener(
    "toggle",
    (event) => {
      const panel = event.target;
      // A panel that `look` has not seen was closed by its replacement, not by the visitor.
      if (panel.matches?.("[data-recast-panel]") && panel.dataset.seen) panelOpen = panel.open;
    },
    true,
  );

  const look = () => {
    const panel = document.querySelector("[data-recast-panel]");
    if (panel && !panel.dataset.seen) {
      panel.dataset.seen = "yes";
      panel.open = panelOpen;
    }
    const canvas = canvasNow();
    if (canvas && !canvas.dataset.seen) {
      canvas.dataset.seen = "yes";
      if (isMasked(canvas)) showMask(canvas); // it was made again with the pictures of the clip
    }
    document.querySelectorAll("[data-recast-job], [data-recast-view]").forEach((view) => {
      const visible = shown(view);
      const fresh = view.dataset.loaded === "yes";
      const isJob = "recastJob" in view.dataset || view.dataset.query;
      if (visible && !fresh) {
        view.dataset.loaded = "yes";
        if (isJob) dismissErrors();
        load(view).then(() => isJob && reveal(view));
      } else if (!visible && fresh && !isJob) {
        view.dataset.loaded = ""; // a list is loaded again whenever its tab is opened
      }
    });
  };

  // --- a running job -----------------------------------------------------------------------------

  const follow = async (view, live) => {
    const find = (name) => live.querySelector(`[data-${name}]`);
    const lost = find("lost");
    let previews = 0;
    while (live.isConnected) {
      try {
        const job = await (await get(`/jobs/${live.dataset.recastLive}`)).json();
        lost.hidden = true;
        if (job.state !== "queued" && job.state !== "running") {
          load(view);
          return;
        }
        draw(live, find, job);
        if (job.previews > previews) {
          previews = job.previews;
          picture(find, `${job.preview}?${previews}`);
        }
      } catch (error) {
        if (error.status === 404) {
          load(view);
          return;
        }
        lost.hidden = false;
      }
      await new Promise((wait) => setTimeout(wait, POLL));
    }
  };

  const picture = (find, url) => {
    const next = new Image(); // the old picture stays until the new one is there
    next.onload = () => {
      const image = find("preview");
      image.src = url;
      image.hidden = false;
      find("preview-note").textContent = "The clip as it is so far";
    };
    next.src = url;
  };

  const draw = (live, find, job) => {
    const set = (name, text) => {
      if (find(name).textContent !== text) find(name).textContent = text;
    };
    set("state", job.state_label);
    const steps = job.total > 1 ? `, step ${job.index} of ${job.total}` : "";
    set("stage", job.state === "queued" ? waiting(job.ahead) : job.stage_label + steps);
    set("left", job.left_label);
    const bar = find("bar");
    if (job.state === "running" && job.total > 1) bar.value = job.index / job.total;
    else bar.removeAttribute("value");
    curve(find, job.losses);
    const notes = find("notes");
    if (notes.children.length !== job.notes.length)
      notes.replaceChildren(
        ...job.notes.map((text) => Object.assign(document.createElement("li"), { textContent: text })),
      );
  };

  const waiting = (ahead) =>
    ahead ? `In the queue, ${ahead} ${ahead === 1 ? "job" : "jobs"} before it` : "Next in the queue";

  const curve = (find, losses) => {
    if (losses.length < 2) return;
    const values = losses.map(([, loss]) => Math.log(Math.max(loss, 1e-12)));
    const low = Math.min(...values);
    const span = Math.max(...values) - low || 1;
    const points = values.map(
      (value, i) =>
        `${((300 * i) / (values.length - 1)).toFixed(1)},${(94 - (88 * (value - low)) / span).toFixed(1)}`,
    );
    find("curve").hidden = false;
    find("curve").querySelector("polyline").setAttribute("points", points.join(" "));
    find("loss").textContent = `Loss ${losses.at(-1)[1].toPrecision(3)}, lower is closer to the motion`;
  };

  // --- the player --------------------------------------------------------------------------------

  const player = (place) => {
    const video = place.querySelector("video");
    const range = place.querySelector("[data-frame]");
    const play = place.querySelector("[data-play]");
    const count = place.querySelector("[data-count]");
    const frames = +place.dataset.frames;
    const fps = +place.dataset.fps;
    const tell = (frame) => {
      range.value = frame;
      count.textContent = `${frame + 1} / ${frames}`;
    };
    const show = () => {
      if (!video.seeking) tell(Math.min(frames - 1, Math.floor(video.currentTime * fps + 0.01)));
    };
    const go = (frame) => {
      const wanted = ((frame % frames) + frames) % frames;
      video.pause();
      video.currentTime = (wanted + 0.5) / fps;
      tell(wanted); // at once, so that two quick steps are two frames
    };
    const names = () => (play.textContent = video.paused ? "Play" : "Pause");
    video.addEventListener("play", names);
    video.addEventListener("pause", names);
    video.addEventListener("timeupdate", show);
    video.addEventListener("seeked", show);
    range.addEventListener("input", () => go(+range.value));
    play.addEventListener("click", () => (video.paused ? video.play() : video.pause()));
    place.querySelectorAll("[data-step]").forEach((button) =>
      button.addEventListener("click", () => go(+range.value + +button.dataset.step)),
    );
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) video.play().catch(() => {});
  };

  // --- the settings form and the mask ------------------------------------------------------------

  const value = (input) => {
    if (input.dataset.kind === "switch") return input.checked;
    const text = input.value.trim();
    if (input.dataset.kind === "list") return text ? text.split(/[\s,]+/) : [];
    if (input.dataset.kind === "text") return input.value;
    if (input.dataset.kind === "choice") return text;
    return text === "" ? null : text;
  };

  const same = (now, before) => {
    if (typeof before === "number") return now !== null && Number(now) === before;
    if (Array.isArray(before)) return JSON.stringify(now) === JSON.stringify(before.map(String));
    return now === before;
  };

  const settings = () => {
    const found = {};
    document.querySelectorAll("[data-recast-settings] [name]").forEach((input) => {
      const now = value(input);
      if (same(now, JSON.parse(input.dataset.default))) return;
      const [part, name] = input.name.split(".");
      (found[part] ??= {})[name] = now;
    });
    return JSON.stringify(found);
  };

  const reset = (form) =>
    form.querySelectorAll("[name]").forEach((input) => {
      const before = JSON.parse(input.dataset.default);
      if (input.dataset.kind === "switch") input.checked = before;
      else input.value = Array.isArray(before) ? before.join(" ") : before ?? "";
    });

  let mask = null; // what is drawn, and the picture that it was drawn on

  const canvasNow = () => document.querySelector("[data-recast-mask] canvas");

  const isMasked = (canvas) => mask?.picture === canvas.style.backgroundImage;

  const maskOf = (canvas) => {
    if (!isMasked(canvas)) {
      const { width, height } = canvas;
      const drawn = Object.assign(document.createElement("canvas"), { width, height });
      mask = { picture: canvas.style.backgroundImage, drawn };
    }
    return mask.drawn;
  };

  const showMask = (canvas) => {
    const view = canvas.getContext("2d");
    view.clearRect(0, 0, canvas.width, canvas.height);
    view.drawImage(maskOf(canvas), 0, 0);
    view.globalCompositeOperation = "source-in"; // in a colour that is seen on light and dark clips
    view.fillStyle = "rgb(255 0 200 / 60%)";
    view.fillRect(0, 0, canvas.width, canvas.height);
    view.globalCompositeOperation = "source-over";
  };

  const stroke = (canvas, from, to) => {
    const place = canvas.closest("[data-recast-mask]");
    const erase = place.querySelector("[data-mask-erase]").getAttribute("aria-pressed") === "true";
    const pen = maskOf(canvas).getContext("2d");
    pen.globalCompositeOperation = erase ? "destination-out" : "source-over";
    pen.strokeStyle = "#fff";
    pen.lineCap = "round";
    pen.lineWidth = +place.querySelector("[data-brush]").value;
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(to[0] + 0.01, to[1]);
    pen.stroke();
    showMask(canvas);
  };

  const point = (canvas, event) => {
    const box = canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) * canvas.width) / box.width,
      ((event.clientY - box.top) * canvas.height) / box.height,
    ];
  };

  let pen = null; // where the pen is, as a point of the canvas
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.matches?.("[data-recast-mask] canvas")) return;
    event.preventDefault();
    pen = point(event.target, event);
    stroke(event.target, pen, pen);
  });
  document.addEventListener("pointermove", (event) => {
    const canvas = canvasNow(); // the one of now: a canvas can be replaced under the pen
    if (!pen || !canvas) return;
    const to = point(canvas, event);
    stroke(canvas, pen, to);
    pen = to;
  });
  document.addEventListener("pointerup", () => (pen = null));

  const drawing = () => {
    const canvas = canvasNow();
    if (!canvas || !isMasked(canvas)) return "";
    const flat = document.createElement("canvas");
    [flat.width, flat.height] = [canvas.width, canvas.height];
    const paint = flat.getContext("2d");
    paint.fillStyle = "#000";
    paint.fillRect(0, 0, flat.width, flat.height);
    paint.drawImage(maskOf(canvas), 0, 0);
    return flat.toDataURL("image/png");
  };

  // --- buttons -----------------------------------------------------------------------------------

  const press = async (button) => {
    const place = button.closest(".rc-job, .rc-list, .rc-view") ?? document.body;
    const view = button.closest(".rc-view");
    if (button.dataset.confirm && !confirm(button.dataset.confirm)) return;
    button.disabled = true;
    try {
      await post(button.dataset.post);
      if (button.dataset.post.endsWith("/delete") && view?.dataset.recastJob) location.href = "/";
      else if (view) load(view);
    } catch (error) {
      complain(place, error);
    }
    button.disabled = false;
  };

  const mix = async (button) => {
    const place = button.closest(".rc-list");
    const parts = [...place.querySelectorAll("[data-weight]")]
      .filter((input) => input.value.trim() && Number(input.value) !== 0)
      .map((input) => [input.dataset.weight, input.value.replace(",", ".")]);
    try {
      await post("/motions/mix", parts);
      load(button.closest(".rc-view"));
    } catch (error) {
      complain(place, error);
    }
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("button");
    if (!button) return;
    if (button.dataset.post) press(button);
    else if ("recastMix" in button.dataset) mix(button);
    else if ("recastReset" in button.dataset) reset(button.closest("form"));
    else if ("copy" in button.dataset) {
      await navigator.clipboard?.writeText(button.previousElementSibling.textContent);
      button.textContent = "Copied";
    } else if ("maskErase" in button.dataset) {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
    } else if ("maskClear" in button.dataset) {
      const canvas = canvasNow();
      maskOf(canvas).getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
      showMask(canvas);
    }
  });

  // All answers come on one stream, which the server closes when nothing is waited for. Gradio 6.31
  // forgets an answer that is asked for while the stream closes, until another event opens it again.
  let reopenings = [];
  const expectAnswer = (event) => {
    if (event.target.id === "rc-reopen") return;
    reopenings.forEach(clearTimeout);
    const reopen = () => document.querySelector("#rc-reopen").click();
    reopenings = [3, 10].map((seconds) => setTimeout(reopen, 1000 * seconds));
  };
  for (const name of ["input", "change", "click", "keydown", "drop"])
    document.addEventListener(name, expectAnswer, true);

  window.recast = { settings, drawing };
  document.documentElement.lang = "en";
  setInterval(look, 250);
})();
