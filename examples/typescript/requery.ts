// A client of Requery with fetch; its types come from the service's OpenAPI document (api.ts).
//
//   npm ci && npm run build && node build/requery.js "steele stake"
import { pathToFileURL } from "node:url";
import type { Problem, RewriteRequest, RewriteResponse } from "./api.js";

/** Time for the network, in addition to the deadline. */
const SLACK_MS = 25;

export interface Options {
  url?: string;
  apiKey?: string;
  deadlineMs?: number;
}

/**
 * Texts to search with: the query, then its rewrites, best first.
 *
 * A search must not fail because rewrites are missing, so that a failure gives the query alone.
 */
export async function texts(query: string, options: Options = {}): Promise<string[]> {
  try {
    const answer = await rewrite({ query, deadline_ms: options.deadlineMs ?? 150 }, options);
    return [query, ...answer.rewrites.map((rewrite) => rewrite.text)];
  } catch (error) {
    console.error(`no rewrites: ${error instanceof Error ? error.message : error}`);
    return [query];
  }
}

/** The service's answer; throws what the service or the network says instead. */
export async function rewrite(request: RewriteRequest, options: Options = {}): Promise<RewriteResponse> {
  const headers: Record<string, string> = { "content-type": "application/json" };
  if (options.apiKey) headers.authorization = `Bearer ${options.apiKey}`;
  const response = await fetch(`${options.url ?? "http://localhost:8000"}/v1/rewrite`, {
    method: "POST",
    headers,
    body: JSON.stringify(request),
    signal: AbortSignal.timeout((request.deadline_ms ?? 2000) + SLACK_MS),
  });
  if (!response.ok) {
    const problem = (await response.json()) as Problem;
    throw new Error(`${response.status} ${problem.type}: ${problem.detail}`);
  }
  return (await response.json()) as RewriteResponse;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const { REQUERY_URL, REQUERY_API_KEY } = process.env;
  const found = await texts(process.argv[2] ?? "steele stake", {
    ...(REQUERY_URL && { url: REQUERY_URL }),
    ...(REQUERY_API_KEY && { apiKey: REQUERY_API_KEY }),
    deadlineMs: 2000,
  });
  console.log(found.join("\n"));
}
