// A text coloured by the layers that its tokens drew on. No request here.

const DATA = JSON.parse(document.getElementById("data").textContent);
const MIN_SPAN = 1; // layers that the colours span at least, so that they do not blow up what is next to nothing

/** Returns a new element; what is written into it is text and never markup. */
function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const mean = (rows) => rows[0].map((_, k) => rows.reduce((sum, row) => sum + row[k], 0) / rows.length);
const percent = (weight) => `${(100 * weight).toFixed(weight < 0.0995 ? 1 : 0)} %`;

/** Returns an inspected text's pieces, each with its weights and the mean number of its layers. */
function weighPieces(inspected, layers) {
  let first = 0;
  return inspected.pieces.map((piece) => {
    const rows = inspected.weights.slice(first, first + piece.tokens);
    const tokens = inspected.tokens.slice(first, first + piece.tokens);
    first += piece.tokens;
    const characters = Array.from(piece.text); // the server counts characters, JavaScript halves of some
    const weights = rows.length ? mean(rows) : null;
    return {
      lead: characters.slice(0, piece.lead).join(""),
      body: characters.slice(piece.lead).join(""),
      field: piece.field,
      tokens,
      weights,
      layer: weights && weights.reduce((sum, weight, k) => sum + weight * layers[k], 0),
    };
  });
}

/** Returns the layer numbers at both ends of the colours: what is used, no narrower than MIN_SPAN where it can be. */
function spanOf(pieces, layers) {
  const [first, last] = [Math.min(...layers), Math.max(...layers)];
  const used = pieces.filter((piece) => piece.weights && piece.body && piece.field !== null).map((piece) => piece.layer);
  if (!used.length) return [first, last];
  let [low, high] = [Math.min(...used), Math.max(...used)];
  const missing = Math.max(0, MIN_SPAN - (high - low)) / 2;
  [low, high] = [low - missing, high + missing];
  if (low < first) [low, high] = [first, high + first - low];
  if (high > last) [low, high] = [low - (high - last), last];
  return [Math.max(low, first), high];
}

function colourAt(layer, [low, high]) {
  const share = Math.min(Math.max((layer - low) / (high - low || 1), 0), 1);
  return DATA.scale[Math.round(share * (DATA.scale.length - 1))];
}

/** Puts the text into a place: what was typed coloured, the prompt's words small; returns the tokens' elements. */
function drawPieces(place, pieces, span, { direction, lang }, onToken) {
  const tokens = [];
  let paragraph, field;
  place.replaceChildren();
  for (const piece of pieces) {
    const isSpecial = !piece.lead && !piece.body;
    if (isSpecial && !piece.tokens.some((token) => token.replaceAll("▁", ""))) continue; // a mere marker
    const begins = !paragraph || piece.field !== field;
    if (begins) {
      field = piece.field;
      paragraph = make("p", field === null ? "prompt" : "coloured");
      paragraph.dir = field === null ? "auto" : direction;
      if (field !== null && lang) paragraph.lang = lang;
      place.append(paragraph);
    }
    if (!begins) paragraph.append(piece.lead);
    if (!isSpecial && !piece.body) continue;
    const token = make("span", isSpecial ? "special" : piece.weights ? "token" : "unread");
    token.textContent = isSpecial ? piece.tokens.join("") : piece.body;
    paragraph.append(token);
    if (!piece.weights) continue;
    const colour = colourAt(piece.layer, span);
    if (field === null || isSpecial) token.style.textDecorationColor = colour;
    else token.style.backgroundColor = colour;
    token.tabIndex = tokens.length ? -1 : 0;
    const index = tokens.push(token) - 1;
    const speak = () => {
      for (const other of tokens) other.classList.toggle("now", other === token);
      onToken(piece);
    };
    token.addEventListener("pointerenter", speak);
    token.addEventListener("focus", speak);
    token.addEventListener("click", () => go(index));
    token.addEventListener("keydown", (event) => {
      const isRtl = getComputedStyle(token.parentElement).direction === "rtl";
      const step = { ArrowRight: isRtl ? -1 : 1, ArrowLeft: isRtl ? 1 : -1, Home: -index, End: tokens.length - 1 - index };
      if (!(event.key in step) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      go(index + step[event.key]);
    });
  }
  function go(index) {
    if (!tokens[index]) return;
    for (const token of tokens) token.tabIndex = -1;
    tokens[index].tabIndex = 0;
    tokens[index].focus();
  }
  return tokens;
}

/** Draws the weights of a token as columns, with the text's own mean, if given, as a line across each. */
function drawWeights(place, weights, ofText, layers) {
  const most = 1.06 * Math.max(...weights, ...(ofText || []), 0.2); // room for the line below the number
  const every = Math.ceil(layers.length / 12);
  place.replaceChildren();
  layers.forEach((layer, k) => {
    const column = make("div", "layer");
    const track = make("div", "track");
    const fill = make("div", "fill");
    fill.style.height = `${(100 * weights[k]) / most}%`;
    const says = every === 1 || weights[k] === Math.max(...weights) ? Math.round(100 * weights[k]) : "";
    track.append(fill);
    if (ofText) {
      const line = make("div", "line");
      line.style.bottom = `${(100 * ofText[k]) / most}%`;
      track.append(line);
    }
    column.append(make("span", "value", says), track, make("span", "number", k % every ? "" : layer));
    place.append(column);
  });
}

/** Says in words what `drawWeights` draws. */
function sayPiece(piece, layers) {
  const spelt = piece.tokens.join(" + ");
  const what = piece.body ? `“${piece.body}”` : spelt;
  const each = layers.map((layer, k) => `${layer}: ${percent(piece.weights[k])}`).join(", ");
  return { head: `${what}: mean layer ${piece.layer.toFixed(2)}`, spelt, each: `; layer ${each}` };
}
