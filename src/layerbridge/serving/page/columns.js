// One column a model: its answer as it comes, and the text under it.

/** What a model is asked: its own fields, of what was typed. */
function spoken(model, typed) {
  const { fields, encoder_prompt: prompt } = model.layerbridge;
  if (prompt === null || fields.length === 1) return { text: typed[fields[0]] || "" };
  return { text: "", layerbridge: { fields: Object.fromEntries(fields.map((name) => [name, typed[name] || ""])) } };
}

class Column {
  constructor(model) {
    this.model = model;
    this.element = document.getElementById("column").content.firstElementChild.cloneNode(true);
    const part = (name) => this.element.querySelector(name);
    this.answer = part(".answer");
    this.note = part(".note");
    this.failure = part(".failure");
    this.layers = part(".layers");
    const { fusion, layers } = model.layerbridge;
    part("h2").textContent = model.id;
    const mixed = layers.length === 1 ? `layer ${layers[0]} alone` : `layers ${layers[0]} to ${layers.at(-1)}`;
    part(".about").textContent = fusion ? `${fusion}, ${mixed}` : mixed;
    this.element.setAttribute("aria-label", `Answer of ${model.id}`);
  }

  /** Asks for an answer; resolves when it is there, or rejects with what went wrong. */
  async ask(typed, how, signal) {
    this.note.textContent = "…";
    const { text, ...more } = spoken(this.model, typed);
    const body = { model: this.model.id, ...more };
    const start = performance.now();
    const seconds = () => `${((performance.now() - start) / 1000).toFixed(1)} s`;
    if (how.kind === "labels") {
      const found = await json("v1/classify", { ...body, texts: [text], labels: how.labels }, signal);
      const { probabilities } = found.data[0];
      this.drawProbabilities(how.labels.map((label) => [label, probabilities[label]]));
      this.note.textContent = `Of ${how.labels.length} labels, in ${seconds()}.`;
      return;
    }
    const written = make("p", "written writing");
    written.dir = "auto";
    this.answer.replaceChildren(written);
    let finish = null;
    try {
      const wanted = { ...body, prompt: text, max_tokens: how.maxTokens, stream: true, stream_options: { include_usage: true } };
      for await (const chunk of events("v1/completions", wanted, signal)) {
        const [choice] = chunk.choices;
        if (choice && choice.text) written.append(written.textContent ? choice.text : choice.text.trimStart());
        if (choice && choice.finish_reason) finish = choice.finish_reason;
        if (chunk.usage) {
          const number = chunk.usage.completion_tokens;
          const why = finish === "length" ? ", cut off at the most that were asked for" : "";
          this.note.textContent = `${number} token${number === 1 ? "" : "s"} in ${seconds()}${why}.`;
        }
      }
      if (!written.textContent.trim()) this.answer.replaceChildren(make("p", "soft", "The answer is empty."));
    } finally {
      written.classList.remove("writing");
    }
  }

  /** Fetches the text's tokens with their weights. */
  async inspect(typed, signal) {
    const { text, ...more } = spoken(this.model, typed);
    const body = { model: this.model.id, ...more, texts: [text], pieces: true };
    const found = await json("v1/inspect", body, signal);
    this.numbers = found.layers;
    this.weights = found.data[0].weights;
    this.pieces = weighPieces(found.data[0], found.layers);
  }

  drawProbabilities(probabilities) {
    const list = make("ul", "bars");
    const most = Math.max(...probabilities.map(([, probability]) => probability));
    for (const [label, probability] of probabilities) {
      const item = make("li", probability === most ? "best" : "");
      const name = make("span", "label", label);
      name.dir = "auto";
      const track = make("span", "track");
      const fill = make("span", "fill");
      fill.style.width = `${100 * probability}%`;
      track.append(fill);
      item.append(name, track, make("span", "percent", percent(probability)));
      list.append(item);
    }
    this.answer.replaceChildren(list);
  }

  /** Draws the text, coloured over a span of layers that columns may share. */
  drawLayers(span, looks) {
    if (!this.pieces) return;
    const { numbers, pieces } = this;
    const part = (name) => this.layers.querySelector(name);
    const ofText = mean(this.weights);
    const weights = part(".weights");
    const says = part(".says");
    const steps = DATA.scale.filter((_, k) => k % 8 === 0);
    part(".bar").style.backgroundImage = `linear-gradient(to right, ${steps.join(", ")})`;
    part(".low").replaceChildren(`layer ${span[0].toFixed(1)}, `, make("span", "whole", "nearer the input"));
    part(".high").replaceChildren(`layer ${span[1].toFixed(1)}, `, make("span", "whole", "nearer the output"));
    drawPieces(part(".texts"), pieces, span, looks, (piece) => {
      const { head, spelt, each } = sayPiece(piece, numbers);
      const name = make("bdi", "", head.split(": mean layer")[0]);
      says.replaceChildren(name, `: mean layer ${piece.layer.toFixed(2)}`, make("span", "hidden", each));
      if (spelt.replace("▁", "") !== piece.body) says.append(make("bdi", "spelt", spelt));
      drawWeights(weights, piece.weights, ofText, numbers);
    });
    says.textContent = "The whole text on average. Point at a token, or reach it with the arrow keys.";
    drawWeights(weights, ofText, null, numbers);
    const used = pieces.filter((piece) => piece.weights && piece.field !== null).map((piece) => piece.layer);
    const range = Math.max(...used) - Math.min(...used);
    let colours = "A token's colour is the mean number of the layers that it drew on, weighted by how much. ";
    if (range < 0.25) colours += `Here the tokens hardly differ: by ${range.toFixed(2)} layers at most. `;
    if (range < 0.005) colours = "This run mixes the layers alike for all of these tokens, so all have one colour. ";
    part(".explanation").textContent = colours + "Columns: its weight on each layer, in percent; the line across is the text's mean."
      + (numbers.includes(0) ? " Layer 0 is the encoder's embeddings." : "");
    this.layers.hidden = false;
  }
}

/** Draws the texts of all columns; those that mix the same layers share their colours. */
function drawAllLayers(columns, looks) {
  for (const column of columns) {
    if (!column.pieces) continue;
    const alike = columns.filter((other) => other.pieces && String(other.numbers) === String(column.numbers));
    column.drawLayers(spanOf(alike.flatMap((other) => other.pieces), column.numbers), looks);
  }
}
