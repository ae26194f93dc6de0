// Traffic: reads versions, routing and the audit log, and has the cards that change them redrawn.

import { Problem, Unreachable, call } from "./api.js";
import { auditTable } from "./audit.js";
import { announce, byId, fill } from "./dom.js";
import { killCard } from "./kill.js";
import { failure, notice } from "./notices.js";
import { RoutingForm } from "./routing.js";
import { listVersions } from "./versions.js";
import { versionsTable } from "./versions_table.js";

const FOLLOW_MS = 1000; // while something is being loaded or drained
const MOVING = ["loading", "warming", "draining"];
const ENTRIES = 50;

export function mount() {
  const form = new RoutingForm(byId("traffic-routing"), change);
  let shown = false;
  let failed = false;
  let timer = null;
  let known = null; // {versions, routing, etag}

  /** Read everything; the routing form is drawn anew unless somebody is filling it in. */
  async function load({ keepDraft = true } = {}) {
    clearTimeout(timer);
    try {
      const [versions, routing] = await Promise.all([listVersions(), call("GET", "routing")]);
      known = { versions, routing: routing.data, etag: routing.headers.get("etag") };
      failed = false;
      draw(keepDraft);
    } catch (error) {
      failed = true;
      fill(byId("traffic-notice"), failure(error, () => load()));
      if (!known) for (const id of ["traffic-kill", "traffic-versions", "traffic-routing"]) fill(byId(id));
    }
    await loadAudit();
    follow();
  }

  function draw(keepDraft) {
    const { versions, routing, etag } = known;
    fill(byId("traffic-kill"), killCard(routing, versions.versions, change));
    fill(byId("traffic-versions"), versionsTable(versions, routing, change));
    form.show({ routing, etag, versions: versions.versions, keepDraft });
  }

  async function loadAudit() {
    try {
      const { data } = await call("GET", `audit?limit=${ENTRIES}`);
      fill(byId("traffic-audit"), auditTable(data.entries));
    } catch (error) {
      fill(byId("traffic-audit"), failure(error, loadAudit));
    }
  }

  function follow() {
    const moving = known?.versions.versions.some((version) => MOVING.includes(version.state));
    if (!shown || !moving || failed) return;
    timer = setTimeout(async () => {
      try {
        known.versions = await listVersions();
        draw(true);
      } catch {
        failed = true;
      }
      follow();
    }, FOLLOW_MS);
  }

  /** Make a confirmed change and show what has become of everything. */
  async function change(done, method, path, options = {}) {
    try {
      await call(method, path, options);
      fill(byId("traffic-notice"), notice("good", done));
      announce(done);
      await load({ keepDraft: path !== "routing" });
    } catch (error) {
      if (error instanceof Problem && error.status === 412) {
        await load({ keepDraft: false });
        fill(byId("traffic-notice"), notice("warn", "Somebody else has changed the routing meanwhile",
          "Your change was not made. Below is what is in force now: look at it, and decide again."));
      } else {
        fill(byId("traffic-notice"), failure(error, error instanceof Unreachable ? null : () => load()));
      }
    }
    byId("traffic-notice").scrollIntoView({ block: "nearest" });
  }

  return {
    show() {
      shown = true;
      load();
    },
    hide() {
      shown = false;
      clearTimeout(timer);
    },
    keyChanged() {
      fill(byId("traffic-notice"));
      load();
    },
    recovered() {
      fill(byId("traffic-notice"));
      load();
    },
    hash: () => "#traffic",
  };
}
