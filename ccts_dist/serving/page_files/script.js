"use strict";
const facts = JSON.parse(document.body.dataset.facts);
const byId = (id) => document.getElementById(id);
const [said, audio, curve] = [byId("said"), byId("audio"), byId("curve")];
const RATE = 16000, DECODED_BY_SERVER = /\.(wav|wave|flac|ogg|oga|mp3|aif|aiff|au)$/i;
const MARGIN = { left: 46, right: 12, top: 12, bottom: 28 };
let shown = null;      // { name, blob, windows, duration }
let chosen = [0, 0];   // seconds
let recorder = null, address = "";

function say(words, isError = false) {
  said.textContent = words;
  said.className = isError ? "error" : "";
  said.setAttribute("role", isError ? "alert" : "status");
}

function busy(is) {
  for (const one of document.querySelectorAll("#file, #record, #window")) one.disabled = is;
  document.querySelector("main").setAttribute("aria-busy", String(is));
}

// --- a recording becomes a file that the server decodes ---

async function toWave(blob) {
  const context = new AudioContext();
  let decoded;
  try {
    decoded = await context.decodeAudioData(await blob.arrayBuffer());
  } catch {
    throw new Error("this browser cannot decode the recording. Send WAV, FLAC, Ogg or MP3.");
  } finally {
    context.close();
  }
  const offline = new OfflineAudioContext(1, Math.max(1, Math.round(decoded.duration * RATE)), RATE);
  const source = offline.createBufferSource();
  source.buffer = decoded;
  source.connect(offline.destination);
  source.start();
  return waveFile((await offline.startRendering()).getChannelData(0));
}

function waveFile(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, words) => [...words].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true); view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, i) =>
    view.setInt16(44 + 2 * i, Math.max(-32768, Math.min(32767, Math.round(sample * 32767))), true));
  return new Blob([view.buffer], { type: "audio/wav" });
}

async function predict(blob, name) {
  busy(true);
  say("Predicting …");
  try {
    if (!DECODED_BY_SERVER.test(name)) blob = await toWave(blob);
    if (blob.size > facts.recording_bytes)
      throw new Error(`${(blob.size / 2 ** 20).toFixed(1)} MiB are more than this server takes (${facts.size}).`);
    const form = new FormData(), length = Number(byId("window").value);
    form.append("window", String(length));
    form.append("hop", String(length / 2));
    form.append("audio", blob, "recording");
    const found = await ask(form, name);
    show({ name, blob, answer: found.predictions[0], windows: found.windows[0] });
    say("");
  } catch (error) {
    say(error.message, true);
  } finally {
    busy(false);
  }
}

async function ask(form, name) {
  let answer;
  try {
    answer = await fetch("invocations", { method: "POST", body: form });
  } catch {
    throw new Error("the server does not answer. Is it still running?");
  }
  const body = await answer.json().catch(() => ({}));
  if (answer.ok) return body;
  const words = body.message || `the server answered ${answer.status} ${answer.statusText}`;
  throw new Error(words.replace(/^recording 0:/, () => `${name}:`));
}

// --- what is shown of it ---

const colour = (number) => `var(--c${number % 8})`;
const named = (name, parent, attributes = {}) => {
  const one = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
  parent.append(one);
  return one;
};
const html = (name, parent, words = "", className = "") => {
  const one = document.createElement(name);
  one.textContent = words;
  one.className = className;
  parent.append(one);
  return one;
};

// Lines of the curve: targets on the corpus's scale, or without any the categories' probabilities.
let [low, high] = facts.targets.length ? facts.scale : [0, 1];
const series = facts.targets.length
  ? facts.targets.map((name) => ({ name, key: name }))
  : facts.categories.map((name) => ({ name, key: `p(${name})` }));
const percent = (share) => `${(100 * share).toFixed(0)} %`;
const onScale = (value) => (facts.targets.length ? value.toFixed(2) : percent(value));

function show(found) {
  shown = { ...found, duration: found.windows.at(-1).end_s };
  byId("name").textContent = `${found.name}, ${shown.duration.toFixed(1)} s`;
  byId("targets").replaceChildren();
  byId("categories").replaceChildren();
  const bar = (group, name, words, share, fill) => {
    const one = html("div", byId(group), "", "figure"), value = html("div", one, "", "value");
    html("span", value, name);
    html("b", value, words);
    const filled = html("div", html("div", one, "", "bar"));
    filled.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
    filled.style.background = fill;
  };
  facts.targets.forEach((name, number) => {
    const value = found.answer[name];
    bar("targets", name, value.toFixed(2), (value - low) / (high - low), colour(number));
  });
  facts.categories.map((name, number) => [name, found.answer[`p(${name})`], number]).sort((a, b) => b[1] - a[1])
    .forEach(([name, share, number]) =>
      bar("categories", name, percent(share), share, facts.targets.length ? "var(--faint)" : colour(number)));
  const legend = byId("legend");
  legend.replaceChildren();
  series.forEach((one, number) => {
    const item = html("span", legend);
    html("i", item).style.background = colour(number);
    item.append(one.name);
  });
  if (!facts.targets.length) {
    const most = Math.max(...found.windows.flatMap((span) => series.map((one) => span[one.key])));
    high = Math.min(1, Math.ceil(most * 5) / 5);
  }
  audio.pause();
  URL.revokeObjectURL(address);
  address = audio.src = URL.createObjectURL(found.blob);
  byId("result").hidden = false;
  choose(0, shown.duration);
}

const across = () => curve.clientWidth - MARGIN.left - MARGIN.right;
const x = (seconds) => MARGIN.left + (across() * seconds) / shown.duration;
const y = (value) => {
  const height = curve.clientHeight - MARGIN.top - MARGIN.bottom;
  return MARGIN.top + height * (1 - (Math.max(low, Math.min(high, value)) - low) / (high - low));
};

function step(range, most) {
  const rough = range / most, power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
}

function ticks(from, to, most) {
  const size = step(to - from, most), found = [];
  for (let at = Math.ceil(from / size - 1e-9); at * size <= to + 1e-9 * size; at += 1) found.push(at * size);
  return [found, Math.max(0, -Math.floor(Math.log10(size) + 1e-9))];
}

function draw() {
  if (!shown || !curve.clientWidth) return;
  curve.replaceChildren();
  curve.setAttribute("viewBox", `0 0 ${curve.clientWidth} ${curve.clientHeight}`);
  const bottom = curve.clientHeight - MARGIN.bottom, right = curve.clientWidth - MARGIN.right;
  const [levels, digits] = ticks(low, high, 7);
  for (const level of levels) {
    named("line", curve, { class: "grid", x1: MARGIN.left, x2: right, y1: y(level), y2: y(level) });
    const words = facts.targets.length ? level.toFixed(digits) : percent(level);
    named("text", curve, { x: MARGIN.left - 6, y: y(level) + 4, "text-anchor": "end" }).textContent = words;
  }
  const [times, places] = ticks(0, shown.duration, Math.max(2, Math.floor(across() / 70)));
  for (const time of times) {
    named("line", curve, { class: "grid", x1: x(time), x2: x(time), y1: bottom, y2: bottom + 5 });
    const words = `${time.toFixed(places)} s`, anchor = x(time) > right - 18 ? "end" : "middle";
    named("text", curve, { x: x(time), y: bottom + 19, "text-anchor": anchor }).textContent = words;
  }
  if (chosen[1] - chosen[0] < shown.duration - 0.01)
    named("rect", curve, { class: "chosen", x: x(chosen[0]), y: MARGIN.top,
      width: Math.max(1, x(chosen[1]) - x(chosen[0])), height: bottom - MARGIN.top });
  series.forEach((one, number) => {
    const points = shown.windows.map((span) => [x((span.start_s + span.end_s) / 2), y(span[one.key])]);
    // The last window ends with the recording: near the one before it, a line to it would be a stroke up or down.
    const near = points.length > 2 && points.at(-1)[0] - points.at(-2)[0] < (points[1][0] - points[0][0]) / 2;
    byId("hollow").hidden = !near;
    const joined = near ? points.slice(0, -1) : points;
    const line = named("polyline", curve, { class: "line", points: joined.map((at) => at.join(",")).join(" ") });
    line.style.stroke = colour(number);
    if (points.length <= 40)
      for (const [cx, cy] of joined) named("circle", curve, { cx, cy, r: 3 }).style.fill = colour(number);
    if (near) {
      const [cx, cy] = points.at(-1), last = named("circle", curve, { cx, cy, r: 3, class: "last" });
      last.style.stroke = colour(number);
    }
  });
  named("line", curve, { class: "head", id: "head", y1: MARGIN.top, y2: bottom });
  place();
  const parts = series.map((one) => `${one.name} ${onScale(shown.answer[one.key])}`);
  curve.setAttribute("aria-label", `Curve of ${shown.windows.length} windows over ${shown.duration.toFixed(1)} s; ` +
    `means: ${parts.join(", ")}`);
}

// --- the chosen stretch is played ---

function choose(from, to) {
  chosen = [Math.max(0, Math.min(from, to)), Math.min(shown.duration, Math.max(from, to))];
  byId("from").value = chosen[0].toFixed(1);
  byId("to").value = chosen[1].toFixed(1);
  draw();
}

const second = (event) => {
  const at = (event.clientX - curve.getBoundingClientRect().left - MARGIN.left) / across();
  return shown.duration * Math.max(0, Math.min(1, at));
};
curve.addEventListener("pointerdown", (event) => {
  const began = second(event);
  curve.setPointerCapture(event.pointerId);
  const move = (moved) => choose(began, second(moved));
  curve.addEventListener("pointermove", move);
  curve.addEventListener("pointerup", (ended) => {
    curve.removeEventListener("pointermove", move);
    if (Math.abs(second(ended) - began) < shown.duration / 200) choose(began, shown.duration);
  }, { once: true });
});

async function play() {
  if (!audio.paused) return audio.pause();
  audio.currentTime = chosen[0];
  try {
    await audio.play();
  } catch {
    say("this browser cannot play the recording; its predictions are shown all the same.", true);
  }
}

function place() {
  const head = byId("head");
  if (!head || !shown) return;
  head.style.display = audio.currentTime > 0 ? "" : "none";
  for (const end of ["x1", "x2"]) head.setAttribute(end, x(Math.min(audio.currentTime, shown.duration)));
}

function follow() {
  place();
  if (audio.currentTime >= chosen[1]) audio.pause();
  if (!audio.paused) requestAnimationFrame(follow);
}
audio.addEventListener("play", () => { byId("play").textContent = "Pause"; follow(); });
audio.addEventListener("pause", () => { byId("play").textContent = "Play"; });
byId("play").addEventListener("click", play);
byId("whole").addEventListener("click", () => choose(0, shown.duration));
for (const id of ["from", "to"])
  byId(id).addEventListener("change", () => choose(Number(byId("from").value), Number(byId("to").value)));

// --- files and the microphone ---

byId("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) predict(file, file.name);
  event.target.value = "";
});
byId("window").addEventListener("change", () => { if (shown) predict(shown.blob, shown.name); });
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", kind === "dragover");
    const [file] = kind === "drop" ? event.dataTransfer.files : [];
    if (file) predict(file, file.name);
  });

async function record() {
  if (recorder) return recorder.stop();
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch {
    return say("the microphone cannot be used: the browser or you did not allow it.", true);
  }
  const parts = [], began = performance.now(), button = byId("record");
  recorder = new MediaRecorder(stream);
  const clock = setInterval(() => {
    const seconds = (performance.now() - began) / 1000;
    byId("record-words").textContent = `Stop, ${seconds.toFixed(0)} s`;
    if (seconds > facts.seconds - 1) recorder.stop();
  }, 200);
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.addEventListener("stop", async () => {
    clearInterval(clock);
    for (const track of stream.getTracks()) track.stop();
    recorder = null;
    button.className = "";
    byId("record-words").textContent = "Record";
    try {
      predict(await toWave(new Blob(parts)), "recording.wav");
    } catch (error) {
      say(error.message, true);
    }
  });
  recorder.start();
  button.className = "recording";
  byId("record-words").textContent = "Stop, 0 s";
  say("");
}
byId("record").addEventListener("click", record);
if (!navigator.mediaDevices || !window.MediaRecorder) {
  byId("record").disabled = true;
  byId("record").title = "Recording needs https, or a server on this machine";
}
new ResizeObserver(draw).observe(curve);
