// The page of a rater: it shows the state that the server returns, plays the clips in step, and sends answers.
// It refuses to know systems and checks, which the server never names.
"use strict";

const $ = (id) => document.getElementById(id);
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const CODE = `recast-study-code ${location.pathname}`;
const STEP = 100; // milliseconds between two looks at the clips
const APART = 0.12; // seconds that clips may drift apart

let study = null;
let item = null;
let player = null;

// --- the clips -----------------------------------------------------------------------------------

/** Plays several videos in step, again and again, and counts the seconds that they have played. */
class Player {
  constructor(videos, onChange) {
    this.videos = videos;
    this.onChange = onChange;
    this.seconds = 0;
    this.playing = false;
    this.last = 0;
    this.timer = setInterval(() => this.tick(), STEP);
  }

  /** The longest video; the others follow it. */
  get leader() {
    return this.videos.reduce((a, b) => ((b.duration || 0) > (a.duration || 0) ? b : a));
  }

  async ready() {
    await Promise.all(this.videos.map((video) => new Promise((resolve, reject) => {
      if (video.readyState >= 3) return resolve();
      video.addEventListener("canplay", resolve, {once: true});
      video.addEventListener("error", () => reject(new Error("A video could not be loaded.")), {once: true});
    })));
  }

  async play() {
    this.playing = true;
    if (this.leader.ended) this.rewind();
    this.onChange();
    const starts = this.videos.filter((video) => !video.ended).map((video) => video.play());
    const results = await Promise.allSettled(starts);
    if (results.some((result) => result.reason?.name === "NotAllowedError")) this.pause();
  }

  pause() {
    this.playing = false;
    this.videos.forEach((video) => video.pause());
    this.onChange();
  }

  rewind() {
    this.videos.forEach((video) => { video.currentTime = 0; });
    this.last = 0;
  }

  tick() {
    const leader = this.leader;
    const time = leader.currentTime;
    if (time > this.last) this.seconds += Math.min(time - this.last, 5 * STEP / 1000);
    this.last = time;
    if (this.playing && leader.ended) {
      this.rewind();
      this.play();
    } else if (this.playing) {
      this.videos.forEach((video) => this.follow(video, time));
    }
    this.onChange();
  }

  follow(video, time) {
    const target = Math.min(time, video.duration || 0);
    if (Math.abs(video.currentTime - target) > APART) video.currentTime = target;
    if (video.paused && !video.ended && target < video.duration) video.play().catch(() => {});
  }

  stop() {
    clearInterval(this.timer);
    this.videos.forEach((video) => { video.pause(); video.removeAttribute("src"); video.load(); });
  }
}

// --- the server ----------------------------------------------------------------------------------

/** The state that the server returns. Throws an Error with the server's own words. */
async function ask(path, content) {
  const options = content === undefined ? {} : {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(content),
  };
  let response;
  try {
    response = await fetch(`api/${path}`, {credentials: "same-origin", ...options});
  } catch {
    throw new Error("The server cannot be reached. Your answer was not stored; please try again.");
  }
  const state = await response.json().catch(() => ({error: `the server answered with ${response.status}`}));
  if (!response.ok) {
    const text = state.error || `the server answered with ${response.status}`;
    const error = new Error(`${text[0].toUpperCase()}${text.slice(1)}.`);
    error.status = response.status;
    throw error;
  }
  return state;
}

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

/** Send, and show the state that comes back. */
async function act(path, content) {
  complain("");
  try {
    show(await ask(path, content));
  } catch (error) {
    complain(error.message);
    if (error.status === 409 && path === "answer") {
      const state = await ask("state").catch(() => null);
      if (state && state.item?.position !== item?.position) show(state);
    }
  }
}

// --- what is shown -------------------------------------------------------------------------------

function show(state) {
  study = state.study;
  if (player) player.stop();
  player = null;
  item = state.item;
  document.title = study.title;
  $("title").textContent = study.title;
  try {
    if (state.code) localStorage.setItem(CODE, state.code);
    if (!state.rater) localStorage.removeItem(CODE);
    $("own-code").textContent = localStorage.getItem(CODE) || "";
  } catch { /* a browser that stores nothing shows no code later */ }
  $("later").hidden = !$("own-code").textContent;
  const {answered, total, name} = state.rater || {answered: 0, total: 0, name: ""};
  $("progress").hidden = !state.rater;
  $("count").textContent = `${answered} of ${total} answered`;
  $("bar").max = total || 1;
  $("bar").value = answered;
  $("own-name").textContent = name;
  $("welcome").hidden = Boolean(state.rater);
  $("judge").hidden = !item;
  $("thanks").hidden = !state.rater || Boolean(item);
  if (item) showItem(answered, total);
  else if (state.rater) $("thanks-title").focus();
  else showWelcome();
}

function showWelcome() {
  $("consent").replaceChildren(...study.consent.split(/\n\s*\n/).map((text) => {
    const paragraph = document.createElement("p");
    paragraph.textContent = text;
    return paragraph;
  }));
  $("agree").checked = false;
}

function showItem(answered, total) {
  $("task").textContent = `${answered + 1} of ${total}`;
  $("text").textContent = item.text;
  $("options").replaceChildren(study.form === "2afc" ? choice() : ratings());
  const videos = [$("source"), ...document.querySelectorAll("#options video")];
  [item.source, ...item.options].forEach((name, index) => {
    videos[index].classList.remove("small");
    videos[index].src = `clips/${name}`;
  });
  start(videos);
  window.scrollTo(0, 0);
  $("task").focus({preventScroll: true});
}

async function start(videos) {
  const own = new Player(videos, update);
  player = own;
  update();
  try {
    await own.ready();
  } catch (error) {
    if (player === own) complain(`${error.message} Check the connection and load this page again.`);
    return;
  }
  if (player !== own) return;
  videos.forEach((video) => video.classList.toggle("small", video.videoWidth <= 128));
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches && !document.hidden) own.play();
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function videoName(index) {
  return item.options.length > 1 ? `Video ${LETTERS[index] || index + 1}` : "Video";
}

function figure(index) {
  const name = videoName(index);
  const video = element("video", {muted: true, playsInline: true, preload: "auto", ariaLabel: name});
  video.addEventListener("click", toggle);
  return element("figure", {}, element("figcaption", {textContent: name}), video);
}

function radio(name, value) {
  const input = element("input", {type: "radio", name, value, required: true});
  input.addEventListener("change", update);
  return input;
}

/** Two clips side by side, with a choice below each. */
function choice() {
  const sides = item.options.map((_, index) => element(
    "div", {}, figure(index),
    element("label", {className: "choice"}, radio("choice", index), videoName(index))));
  return element(
    "fieldset", {}, element("legend", {textContent: study.questions[0]}),
    element("div", {className: "pair"}, ...sides));
}

/** Each clip with a scale for each question. */
function ratings() {
  const blocks = item.options.map((_, index) => element(
    "div", {role: "group", ariaLabel: videoName(index)}, figure(index),
    ...study.questions.map((question, number) => element(
      "fieldset", {}, element("legend", {textContent: question}),
      element("div", {className: "scale"}, ...study.labels.map((label, value) => element(
        "label", {}, radio(`rating-${index}-${number}`, value + 1), `${value + 1} ${label}`)))))));
  return element("div", {className: blocks.length > 1 ? "all" : "one"}, ...blocks);
}

function given() {
  const values = new FormData($("answer"));
  if (study.form === "2afc") return values.has("choice") ? {choice: Number(values.get("choice"))} : null;
  const table = item.options.map((_, index) => study.questions.map(
    (__, number) => Number(values.get(`rating-${index}-${number}`))));
  return table.flat().every((value) => value >= 1) ? {ratings: table} : null;
}

/** Bring buttons and hint up to date. */
function update() {
  if (!player || !item) return;
  $("play").textContent = player.playing ? "Pause" : "Play";
  const missing = item.min_play - player.seconds;
  const answered = given() !== null;
  $("next").disabled = missing > 0 || !answered;
  const hint = missing > 0 ? "Please watch the videos to the end first."
    : answered ? "" : "Please answer every question.";
  if ($("hint").textContent !== hint) $("hint").textContent = hint;
}

// --- what the rater does -------------------------------------------------------------------------

function toggle() {
  if (player?.playing) player.pause();
  else player?.play();
}

$("play").addEventListener("click", toggle);
$("source").addEventListener("click", toggle);
$("again").addEventListener("click", () => { player?.rewind(); player?.play(); });
$("join").addEventListener("submit", (event) => {
  event.preventDefault();
  act("join", {consent: $("agree").checked});
});
$("return").addEventListener("submit", (event) => {
  event.preventDefault();
  act("return", {code: $("code").value.trim()});
});
$("leave").addEventListener("click", () => act("leave", {}));
$("answer").addEventListener("submit", async (event) => {
  event.preventDefault();
  if ($("next").disabled) return;
  $("next").disabled = true;
  await act("answer", {position: item.position, ...given()});
  update();
});
document.addEventListener("visibilitychange", () => { if (document.hidden) player?.pause(); });

act("state");
