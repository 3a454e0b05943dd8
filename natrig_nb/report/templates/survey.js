"use strict";
// One page, no network: reads the study from the page, keeps the answers in this browser, hands out a file.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const TEXTS = read("texts");
const STUDY = read("study");
const STORE = "natrig-survey-" + STUDY.digest;
const PARTS = STUDY.tasks; // one, two, nine
const LONGEST_MS = 3600000;
const stage = document.getElementById("stage");
const bar = document.getElementById("bar");

function text(name, values) {
  return Object.entries(values || {}).reduce((t, [k, v]) => t.replace("{" + k + "}", () => v), TEXTS[name]);
}

function make(tag, settings, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(settings || {})) {
    if (name === "onclick" || name === "onsubmit" || name === "onchange") node[name] = value;
    else if (value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

const paragraph = (name, values) => make("p", {}, text(name, values));
const button = (name, onclick, main) =>
  make("button", { type: "button", class: main ? "main" : false, onclick }, text(name));
const say = (words) => { document.getElementById("status").textContent = words; };

// Show a screen; the heading gets the focus, so that keyboard and screen reader start there.
function show(title, ...children) {
  const heading = make("h2", { tabindex: "-1" }, title);
  stage.replaceChildren(heading, ...children);
  window.scrollTo(0, 0);
  heading.focus({ preventScroll: true });
  return heading;
}

// What a participant has done so far.
let state = null;
let storable = true;

function store() {
  try { localStorage.setItem(STORE, JSON.stringify(state)); } catch { storable = false; }
}

function stored() {
  try {
    localStorage.setItem(STORE + "-test", "1");
    localStorage.removeItem(STORE + "-test");
    return JSON.parse(localStorage.getItem(STORE));
  } catch { storable = false; return null; }
}

function forget() {
  state = null;
  try { localStorage.removeItem(STORE); } catch { storable = false; }
}

function randomHex(bytes) {
  const values = crypto.getRandomValues(new Uint8Array(bytes));
  return Array.from(values, (v) => v.toString(16).padStart(2, "0")).join("");
}

function chosenForm() {
  const asked = new URLSearchParams(location.search).get("form");
  const count = STUDY.forms.length;
  if (asked !== null && /^\d{1,6}$/.test(asked)) return Number(asked) % count;
  return parseInt(randomHex(4), 16) % count;
}

const trials = () => STUDY.forms[state.form].map(([task, kind, condition, pictures]) => ({
  task: STUDY.tasks[task], kind: STUDY.kinds[kind], condition: STUDY.conditions[condition], pictures,
}));
const shows = (picture) => STUDY.conditions[STUDY.pictures[picture][0]];
const tampered = (picture) => !STUDY.untampered.includes(shows(picture));
const image = (picture, alt, name) =>
  make("img", { src: "data:image/png;base64," + STUDY.pictures[picture][2], alt, class: name || false });

// Screens before and between the questions.
function consent() {
  bar.hidden = true;
  const box = make("input", { type: "checkbox", id: "agree" });
  const error = make("p", { class: "error", role: "alert" });
  const begin = () => {
    if (!box.checked) { error.textContent = text("consent_missing"); box.focus(); return; }
    state = { form: chosenForm(), session: randomHex(16), answers: [], introduced: [], seconds: 0 };
    store();
    proceed();
  };
  const questions = STUDY.forms[0].length;
  show(
    text("welcome"), paragraph("purpose"),
    paragraph("what_you_do", { trials: questions, minutes: Math.ceil(questions / 6) }),
    paragraph("what_is_kept"), paragraph("voluntary"),
    ...(STUDY.contact ? [paragraph("contact", { contact: STUDY.contact })] : []),
    ...(storable ? [] : [paragraph("no_storage")]),
    make("label", { class: "option consent" }, box, text("consent")), error,
    make("div", { class: "buttons" }, button("start", begin, true)),
  );
}

function remove() {
  forget();
  consent();
  stage.append(make("p", { role: "status" }, text("deleted")));
}

function resume() {
  bar.hidden = true;
  show(
    text("welcome"), paragraph("found", { done: state.answers.length, trials: trials().length }),
    make("div", { class: "buttons" }, button("resume", proceed, true), button("delete", remove)),
  );
}

function pause() {
  pauseClock();
  bar.hidden = true;
  show(
    text("paused"), paragraph(storable ? "paused_text" : "no_storage"),
    make("div", { class: "buttons" }, button("continue", proceed, true), button("save_partial", save),
      button("delete", remove)),
  );
}

function introduce(task) {
  const next = () => { state.introduced.push(task); store(); proceed(); };
  const part = text("part", { part: PARTS.indexOf(task) + 1 });
  show(part + ": " + text(task + "_title"), paragraph(task + "_intro"),
    make("div", { class: "buttons" }, button("begin", next, true)));
}

function proceed() {
  const done = state.answers.length;
  const all = trials();
  const share = document.getElementById("progress");
  share.max = all.length;
  share.value = done;
  if (done >= all.length) { end(); return; }
  const trial = all[done];
  bar.hidden = false;
  const words = text("progress", { done: done + 1, trials: all.length });
  document.getElementById("progress-text").textContent = words;
  if (!state.introduced.includes(trial.task)) introduce(trial.task);
  else ask(trial, words);
}

// The clock of one answer: it stands while the page is hidden.
let since = null;
let spent = 0;
function startClock() { spent = 0; since = document.hidden ? null : performance.now(); }
function pauseClock() {
  if (since === null) return;
  spent += performance.now() - since;
  since = null;
}
document.addEventListener("visibilitychange", () => {
  if (document.hidden) pauseClock();
  else if (stage.querySelector("form")) since = performance.now();
});

// One question.
function option(type, name, value, label, picture) {
  const input = make("input", { type, name, value });
  if (picture === undefined) return make("label", { class: "option" }, input, label);
  return make("label", { class: "option picture" }, image(picture, ""), make("span", {}, input, label));
}

function question(trial) {
  const words = text(trial.task + "_question");
  if (trial.task === "one") {
    const options = make("div", { class: "options" },
      option("radio", "answer", "1", text("yes")), option("radio", "answer", "0", text("no")));
    return [image(trial.pictures[0], text("face"), "single"),
      make("fieldset", {}, make("legend", { class: "hidden" }, words), options)];
  }
  const isPair = trial.task === "two";
  const label = (i) => isPair ? text(i === 0 ? "left" : "right") : text("number", { number: i + 1 });
  const options = trial.pictures.map((p, i) =>
    option(isPair ? "radio" : "checkbox", "answer", String(i), label(i), p));
  return [make("fieldset", {}, make("legend", { class: "hidden" }, words),
    make("div", { class: isPair ? "pair" : "nine" }, ...options))];
}

function confidence() {
  const levels = ["1", "2", "3"].map((v) => option("radio", "confidence", v, text("confidence_" + v)));
  return make("fieldset", {}, make("legend", {}, text("confidence_question")),
    make("div", { class: "options" }, ...levels));
}

function chosenPictures(trial, form) {
  const marked = Array.from(form.querySelectorAll("input[name=answer]:checked"), (i) => Number(i.value));
  if (trial.task === "one") return marked.length ? [marked[0] === 1] : null;
  if (trial.task === "two" && !marked.length) return null;
  return trial.pictures.map((_, i) => marked.includes(i));
}

function ask(trial, words) {
  const error = make("p", { class: "error", role: "alert" });
  const onsubmit = (event) => {
    event.preventDefault();
    const chosen = chosenPictures(trial, form);
    const sure = form.querySelector("input[name=confidence]:checked");
    if (chosen === null || !sure) {
      const missing = chosen === null ? "answer" : "confidence";
      const name = chosen === null ? trial.task + "_question" : "confidence_question";
      error.textContent = text("answer_missing", { question: text(name) });
      form.querySelector("input[name=" + missing + "]").focus();
      return;
    }
    answered(trial, chosen, Number(sure.value));
  };
  const onchange = () => {
    error.textContent = "";
    if (trial.task === "nine") {
      say(text("marked", { count: form.querySelectorAll("input[name=answer]:checked").length }));
    }
  };
  const form = make("form", { onsubmit, onchange, novalidate: true }, ...question(trial), confidence(), error,
    make("button", { class: "main" }, text("next")));
  const heading = show(text(trial.task + "_question"), form);
  heading.className = "question";
  say(trial.kind === "practice" ? text("practice_progress") : words);
  const pictures = Array.from(form.querySelectorAll("img"), (i) => i.decode().catch(() => null));
  Promise.all(pictures).then(() => requestAnimationFrame(startClock));
}

function answered(trial, chosen, sure) {
  pauseClock();
  const pictures = trial.pictures.map((p, i) => ({
    shows: shows(p), identity: STUDY.pictures[p][1], tampered: tampered(p), chosen: chosen[i],
  }));
  const ms = Math.min(Math.round(spent), LONGEST_MS);
  const { task, kind, condition } = trial;
  state.answers.push({ task, kind, condition, pictures, confidence: sure, ms });
  state.seconds = Math.min(state.seconds + Math.round(ms / 1000), 10 * 3600);
  store();
  if (kind === "practice") feedback(trial, chosen);
  else proceed();
}

function feedback(trial, chosen) {
  const truth = trial.pictures.map(tampered);
  const isRight = truth.every((t, i) => t === chosen[i]);
  const places = truth.flatMap((t, i) => t ? [i] : []);
  const names = places.map((i) => trial.task === "two" ? text(i ? "right" : "left") : String(i + 1));
  const about = trial.task === "one"
    ? text(truth[0] ? "feedback_one_yes" : "feedback_one_no")
    : text("feedback_" + trial.task, { answer: names.join(", ") });
  const following = trials()[state.answers.length];
  const isLast = !following || following.kind !== "practice" || following.task !== trial.task;
  show(text(isRight ? "feedback_right" : "feedback_wrong"), make("p", {}, about),
    ...(isLast ? [paragraph("practice_over")] : []),
    make("div", { class: "buttons" }, button("continue", proceed, true)));
}

// The end: a file, or a server on the same machine.
function record() {
  return {
    version: STUDY.version, study: STUDY.digest, session: state.session, form: state.form,
    language: TEXTS.language, complete: state.answers.length === trials().length, seconds: state.seconds,
    pixel_ratio: Math.min(Math.max(Number((window.devicePixelRatio || 1).toFixed(2)), 0.1), 20),
    answers: state.answers,
  };
}

function tell(words, isError) {
  let place = document.getElementById("told");
  if (!place) { place = make("p", { id: "told" }); stage.append(place); }
  place.setAttribute("role", isError ? "alert" : "status");
  place.textContent = words;
}

function save() {
  const name = "answers-" + state.session.slice(0, 12) + ".json";
  const address = URL.createObjectURL(new Blob([JSON.stringify(record())], { type: "application/json" }));
  const link = make("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
  tell(text("saved", { name }));
}

async function send() {
  try {
    const reply = await fetch("answers", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(record()),
    });
    if (!reply.ok) throw new Error(String(reply.status));
    tell(text("sent"));
  } catch (problem) {
    tell(text("send_failed", { reason: problem.message }), true);
  }
}

function end() {
  bar.hidden = true;
  const isServed = location.protocol.startsWith("http");
  show(
    text("end_title"), paragraph("end_text", { how: text(isServed ? "end_send" : "end_save") }),
    make("div", { class: "buttons" }, ...(isServed ? [button("send", send, true)] : []),
      button("save", save, !isServed), button("delete", remove)),
  );
}

document.getElementById("pause").onclick = pause;
state = stored();
if (state === null) consent();
else resume();
