import { useEffect, useId, useReducer, useState } from "react";

interface Station {
  id: string;
  name: string;
  lines: string[];
}

type State =
  | { status: "idle" }
  | { status: "loading"; previous: Station[] }
  | { status: "done"; hits: Station[] }
  | { status: "error"; message: string };

type Action =
  | { type: "clear" }
  | { type: "start" }
  | { type: "hits"; hits: Station[] }
  | { type: "failed"; message: string };

function reducer(state: State, action: Action): State {
  switch (action.type) {
    case "clear":
      return { status: "idle" };
    case "start":
      // Keep showing the old list, greyed out, so the page does not jump.
      return { status: "loading", previous: state.status === "done" ? state.hits : [] };
    case "hits":
      return { status: "done", hits: action.hits };
    case "failed":
      return { status: "error", message: action.message };
  }
}

export function useDebouncedSearch(query: string, delayMs = 250): State {
  const [state, dispatch] = useReducer(reducer, { status: "idle" });

  useEffect(() => {
    const q = query.trim();
    if (q.length < 2) {
      dispatch({ type: "clear" });
      return;
    }
    const abort = new AbortController();
    const timer = setTimeout(async () => {
      dispatch({ type: "start" });
      try {
        const res = await fetch(`/api/stations?q=${encodeURIComponent(q)}`, { signal: abort.signal });
        if (!res.ok) throw new Error(`server said ${res.status}`);
        dispatch({ type: "hits", hits: (await res.json()) as Station[] });
      } catch (e) {
        if (abort.signal.aborted) return; // superseded by a newer query
        dispatch({ type: "failed", message: e instanceof Error ? e.message : String(e) });
      }
    }, delayMs);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [query, delayMs]);

  return state;
}

export function StationPicker({ onPick }: { onPick: (s: Station) => void }) {
  const [query, setQuery] = useState("");
  const inputId = useId();
  const state = useDebouncedSearch(query);
  const shown = state.status === "done" ? state.hits : state.status === "loading" ? state.previous : [];

  return (
    <div aria-busy={state.status === "loading"}>
      <label htmlFor={inputId}>Departure</label>
      <input id={inputId} value={query} onChange={(e) => setQuery(e.target.value)} autoComplete="off" />
      {state.status === "error" && <p role="alert">Search failed: {state.message}</p>}
      {state.status === "done" && shown.length === 0 && <p>No station called “{query}”.</p>}
      <ul>
        {shown.map((s) => (
          <li key={s.id}>
            <button type="button" onClick={() => onPick(s)}>
              {s.name} <small>{s.lines.join(", ")}</small>
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
}
