"use strict";
// Asks the server that this page is from, and no other.

const KEY = "layerbridge-key";
let key = "";
try { key = sessionStorage.getItem(KEY) || ""; } catch { /* storage is off: the key lives as long as the page */ }

/** What goes wrong, in words for people. */
class Failure extends Error {
  constructor(message, status = 0) { super(message); this.status = status; }
}

function keepKey(given) {
  key = given;
  try { if (given) sessionStorage.setItem(KEY, given); else sessionStorage.removeItem(KEY); } catch { /* as above */ }
}

/** Returns the response; addresses are relative, so that a proxy may put the server below a path. */
async function request(path, body, signal) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const options = { method: body ? "POST" : "GET", headers, signal, cache: "no-store", credentials: "omit" };
  if (body) options.body = JSON.stringify(body);
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  let told = "";
  try { told = (await response.json()).error.message; } catch { /* a proxy's page, say */ }
  throw new Failure(told || `The server answered with status ${response.status} and no reason.`, response.status);
}

async function json(path, body, signal) {
  return (await request(path, body, signal)).json();
}

/** Yields the data of server-sent events until the server says that it is done. */
async function* events(path, body, signal) {
  const response = await request(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) throw new Failure("The answer broke off: the server closed the connection.");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith(":")) continue; // a comment: the server is there, and the answer waits
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const found = JSON.parse(data);
      if (found.error) throw new Failure(found.error.message);
      yield found;
    }
  }
}
