// The documentation: its search, over an index of all sections and in the browser alone, and its table of contents.

/** @typedef {{path: string, page: string, heading: string, text: string, words: string}} Section */

/** Results that are shown. */
const MOST = 12;

/** Characters of text around the first match. */
const SNIPPET = 140;

const query = /** @type {HTMLInputElement} */ (document.getElementById("query"));
const results = /** @type {HTMLElement} */ (document.getElementById("results"));

/** Loaded when the search is used for the first time. @type {Promise<Section[]> | undefined} */
let index;

function sections() {
  index ??= fetch("/docs/search.json").then((answer) => {
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    return answer.json();
  });
  return index;
}

/** Words of questions that say nothing of what is asked for. */
const FILLERS = new Set("a an and are by can do does for how i in is it my of on or the to use what when where which why with".split(" "));

/** The words of a query, in lower case, without fillers if there are others. @param {string} text */
function wordsOf(text) {
  const words = text.toLowerCase().split(/[\s?!,;]+/).filter(Boolean);
  const telling = words.filter((word) => !FILLERS.has(word));
  return telling.length > 0 ? telling : words;
}

/** A word, and what is left of it without an ending: "installing" finds "install" too. @param {string} word */
function forms(word) {
  const endings = ["s", "es", "d", "ed", "er", "ing", "ion"].filter((ending) => word.endsWith(ending) && word.length >= ending.length + 4);
  return [word, ...endings.map((ending) => word.slice(0, -ending.length))];
}

/**
 * How well a section matches one word. A heading counts more than a further word, that more than a title, and a title more
 * than text. A shorter form of the word counts less.
 *
 * @param {string[]} parts page, heading, text and further words of the section, in lower case
 * @param {string} word
 */
function scoreOfWord([inPage, inHeading, inText, inWords], word) {
  for (const [shorter, form] of forms(word).entries()) {
    const found = (inHeading.includes(form) ? 20 : 0) + (inWords.includes(form) ? 12 : 0) + (inPage.includes(form) ? 5 : 0) + Math.min(inText.split(form).length - 1, 4);
    if (found > 0) return found / (1 + shorter);
  }
  return 0;
}

/** @param {number[]} numbers */
const sum = (numbers) => numbers.reduce((one, other) => one + other, 0);

/**
 * The sections with all words, or else those with some, best first. Of some words the rare ones say more: "how" is in many
 * sections.
 *
 * @param {Section[]} sections
 * @param {string[]} words
 */
function ranked(sections, words) {
  const scores = sections.map((section) => {
    const parts = [section.page, section.heading, section.text, section.words].map((part) => part.toLowerCase());
    return words.map((word) => scoreOfWord(parts, word));
  });
  const rarity = words.map((_, at) => Math.log((1 + sections.length) / (1 + scores.filter((found) => found[at] > 0).length)));
  const matches = sections.map((section, at) => ({
    section,
    complete: scores[at].every((score) => score > 0),
    worth: sum(scores[at].map((score, word) => (score > 0 ? rarity[word] : 0))),
    score: sum(scores[at]),
  }));
  const complete = matches.filter(({ complete }) => complete);
  if (complete.length > 0) return complete.sort((one, other) => other.score - one.score);
  return matches.filter(({ worth }) => worth > 0).sort((one, other) => other.worth - one.worth || other.score - one.score);
}

/** The text around the first match, with the matches marked. @param {string} text @param {string[]} words */
function snippet(text, words) {
  const lower = text.toLowerCase();
  const shown = words.flatMap((word) => forms(word).find((form) => lower.includes(form)) ?? []);
  const match = shown.length > 0 ? Math.min(...shown.map((form) => lower.indexOf(form))) : 0;
  const before = Math.max(0, match - SNIPPET / 3);
  // At the beginning of a word, but never behind the match: JSON may have no spaces.
  const start = before === 0 ? 0 : Math.min(text.indexOf(" ", before) + 1 || match, match);
  const cut = text.lastIndexOf(" ", start + SNIPPET);
  const end = start + SNIPPET < text.length ? (cut > match ? cut : start + SNIPPET) : text.length;
  const part = (start > 0 ? "… " : "") + text.slice(start, end) + (end < text.length ? " …" : "");
  const line = document.createElement("small");
  let at = 0;
  if (shown.length === 0) return Object.assign(line, { textContent: part });
  const pattern = new RegExp(shown.map((word) => word.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")).join("|"), "giu");
  for (const match of part.matchAll(pattern)) {
    const mark = document.createElement("mark");
    mark.textContent = match[0];
    line.append(part.slice(at, match.index), mark);
    at = match.index + match[0].length;
  }
  line.append(part.slice(at));
  return line;
}

/** @param {Section} section @param {string[]} words @param {number} number */
function entry(section, words, number) {
  const link = document.createElement("a");
  link.href = section.path;
  link.tabIndex = -1;
  const title = document.createElement("b");
  title.textContent = section.heading === section.page ? section.page : `${section.page} › ${section.heading}`;
  link.append(title, snippet(section.text, words));
  const item = document.createElement("li");
  item.id = `result-${number}`;
  item.role = "option";
  item.append(link);
  return item;
}

/** @param {string} text */
function note(text) {
  const item = document.createElement("li");
  item.className = "none";
  item.textContent = text;
  return item;
}

async function search() {
  const asked = query.value;
  const words = wordsOf(asked);
  if (words.length === 0) return close();
  let items;
  try {
    items = ranked(await sections(), words).slice(0, MOST).map(({ section }, number) => entry(section, words, number));
    if (items.length === 0) items = [note("Nothing found")];
  } catch (error) {
    index = undefined;
    items = [note(`The search does not work now: ${error}`)];
  }
  // An older search must not replace the results of a newer one.
  if (query.value !== asked) return;
  results.replaceChildren(...items);
  results.hidden = false;
  query.setAttribute("aria-expanded", "true");
  select(0);
}

function close() {
  results.hidden = true;
  results.replaceChildren();
  query.setAttribute("aria-expanded", "false");
  query.removeAttribute("aria-activedescendant");
}

let selected = 0;

/** @param {number} number */
function select(number) {
  const options = results.querySelectorAll('[role="option"]');
  if (options.length === 0) return;
  selected = (number + options.length) % options.length;
  options.forEach((option, at) => option.setAttribute("aria-selected", String(at === selected)));
  query.setAttribute("aria-activedescendant", options[selected].id);
  options[selected].scrollIntoView({ block: "nearest" });
}

query.addEventListener("input", search);
query.addEventListener("focus", search);
query.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown") select(selected + 1);
  else if (event.key === "ArrowUp") select(selected - 1);
  else if (event.key === "Enter") results.querySelectorAll("a")[selected]?.click();
  else if (event.key === "Escape") close();
  else return;
  event.preventDefault();
});
results.addEventListener("click", close);
document.addEventListener("pointerdown", ({ target }) => {
  if (!(target instanceof Element && target.closest("#search"))) close();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target === query || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  query.focus();
});

/** @type {HTMLElement} */ (document.getElementById("search")).hidden = false;

// The table of contents is open where it has a column of its own.
const contents = /** @type {HTMLDetailsElement} */ (document.getElementById("contents"));
const wide = matchMedia("(min-width: 1081px)");
const unfold = () => (contents.open = wide.matches);
wide.addEventListener("change", unfold);
unfold();
