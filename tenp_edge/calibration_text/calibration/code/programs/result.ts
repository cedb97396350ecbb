/**
 * Errors as values, for the import wizard: we want to show *all* problems in
 * an uploaded sheet, not stop at the first exception.
 */
export type Result<T, E = string> =
  | { readonly ok: true; readonly value: T }
  | { readonly ok: false; readonly errors: readonly E[] };

export const ok = <T>(value: T): Result<T, never> => ({ ok: true, value });
export const fail = <E>(...errors: E[]): Result<never, E> => ({ ok: false, errors });

export function map<A, B, E>(r: Result<A, E>, f: (a: A) => B): Result<B, E> {
  return r.ok ? ok(f(r.value)) : r;
}

export function andThen<A, B, E>(r: Result<A, E>, f: (a: A) => Result<B, E>): Result<B, E> {
  return r.ok ? f(r.value) : r;
}

type Shape<T, E> = { [K in keyof T]: Result<T[K], E> };

/** Turn a record of results into a result of a record, keeping every error. */
export function all<T extends object, E>(fields: Shape<T, E>): Result<T, E> {
  const errors: E[] = [];
  const value: Partial<T> = {};
  for (const key of Object.keys(fields) as (keyof T)[]) {
    const r = fields[key];
    if (r.ok) value[key] = r.value;
    else errors.push(...r.errors);
  }
  return errors.length > 0 ? { ok: false, errors } : ok(value as T);
}

// ---------------------------------------------------------------------------

export interface Member {
  name: string;
  joined: Date;
  fee: number;      // cents
}

type Row = Record<string, string | undefined>;

function text(row: Row, column: string): Result<string> {
  const s = row[column]?.trim();
  return s ? ok(s) : fail(`${column} is empty`);
}

function date(row: Row, column: string): Result<Date> {
  return andThen(text(row, column), (s) => {
    const m = /^(\d{1,2})\.(\d{1,2})\.(\d{4})$/.exec(s);
    if (!m) return fail(`${column}: "${s}" is not a date like 31.12.2020`);
    const [d, mo, y] = [Number(m[1]), Number(m[2]), Number(m[3])];
    const t = new Date(Date.UTC(y, mo - 1, d));
    // Date happily turns 31.2. into 3.3.; refuse that.
    return t.getUTCDate() === d && t.getUTCMonth() === mo - 1
      ? ok(t)
      : fail(`${column}: ${s} does not exist`);
  });
}

function cents(row: Row, column: string): Result<number> {
  return andThen(text(row, column), (s) => {
    const m = /^(\d+)(?:[.,](\d{2}))?\s*(?:€|EUR)?$/.exec(s);
    return m ? ok(Number(m[1]) * 100 + Number(m[2] ?? 0)) : fail(`${column}: "${s}" is not an amount`);
  });
}

export function parseMember(row: Row): Result<Member> {
  return all<Member, string>({
    name: text(row, "Name"),
    joined: date(row, "Joined"),
    fee: cents(row, "Fee"),
  });
}

export function parseSheet(rows: Row[]): { members: Member[]; report: string[] } {
  const members: Member[] = [];
  const report: string[] = [];
  rows.forEach((row, i) => {
    const r = parseMember(row);
    // +2: one for the header line, one because people count from 1
    if (r.ok) members.push(r.value);
    else report.push(...r.errors.map((e) => `row ${i + 2}: ${e}`));
  });
  return { members, report };
}
