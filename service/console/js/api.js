// Calls to the service. The key is kept in this module's memory alone: never stored, never in a URL.

const TIMEOUT_MS = 45_000;
const credentials = { key: "", author: "" };

/** Tells of "lost", "found" (the service) and "key" (another key is used from now on). */
export const events = new EventTarget();

/** An answer that is an error, as application/problem+json says it. */
export class Problem extends Error {
  constructor(status, body, headers) {
    super(body.detail || body.title || `HTTP ${status}`);
    this.status = status;
    this.title = body.title || `The service answered ${status}`;
    this.detail = body.detail || "";
    this.errors = Array.isArray(body.errors) ? body.errors : [];
    this.slug = String(body.type || "").split(":").pop();
    this.requestId = body.request_id || headers.get("x-request-id");
    this.retryAfter = headers.get("retry-after");
  }

  /** Whether another key may help. */
  get wantsKey() {
    return this.status === 401 || this.status === 403;
  }
}

/** There was no answer at all. */
export class Unreachable extends Error {
  constructor() {
    super("the service cannot be reached");
  }
}

export function setCredentials({ key, author }) {
  credentials.key = key;
  credentials.author = author;
  events.dispatchEvent(new Event("key"));
}

export function getCredentials() {
  return { ...credentials };
}

/**
 * One call: {data, headers, ms}; ms is the round trip as this page sees it.
 *
 * Throws Problem for an error of the service, Unreachable without an answer, and AbortError if
 * `signal` ends it.
 */
export async function call(method, path, { body, ifMatch, signal, timeoutMs = TIMEOUT_MS } = {}) {
  const headers = new Headers();
  if (credentials.key) headers.set("authorization", `Bearer ${credentials.key}`);
  if (credentials.author && method !== "GET") headers.set("x-requery-author", credentials.author);
  if (body !== undefined) headers.set("content-type", "application/json");
  if (ifMatch) headers.set("if-match", ifMatch);
  const limit = AbortSignal.timeout(timeoutMs);
  const started = performance.now();
  let response, text;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    events.dispatchEvent(new Event("lost"));
    throw new Unreachable();
  }
  const ms = performance.now() - started;
  events.dispatchEvent(new Event("found"));
  const data = parsed(text, response.headers.get("content-type") || "");
  if (!response.ok) throw new Problem(response.status, Object(data), response.headers);
  return { data, headers: response.headers, ms };
}

function parsed(text, type) {
  if (!/[/+]json\b/.test(type)) return text;
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
}
