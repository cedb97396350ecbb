// What is in the pantry? A single-file HTTP service with no dependencies.
//   GET    /items?expiring=7      things that expire within 7 days
//   PUT    /items/:name           {"qty": 2, "unit": "kg", "best_before": "2024-11-30"}
//   DELETE /items/:name
import { createServer } from 'node:http';
import { readFile, rename, writeFile } from 'node:fs/promises';

const FILE = process.env.PANTRY_FILE ?? 'pantry.json';
const MAX_BODY = 10_000;
const DAY = 86_400_000;

let items = new Map();
try {
  items = new Map(Object.entries(JSON.parse(await readFile(FILE, 'utf8'))));
} catch (err) {
  if (err.code !== 'ENOENT') throw err;   // a missing file is an empty pantry
}

// Writes are chained so two requests cannot interleave, and go through a
// temporary file so a power cut leaves either the old list or the new one.
let saving = Promise.resolve();
function save() {
  const text = JSON.stringify(Object.fromEntries(items), null, 1);
  saving = saving.catch(() => {}).then(async () => {
    await writeFile(`${FILE}.tmp`, text);
    await rename(`${FILE}.tmp`, FILE);
  });
  return saving;
}

class HttpError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function readJson(req) {
  let size = 0;
  const chunks = [];
  for await (const chunk of req) {
    size += chunk.length;
    if (size > MAX_BODY) throw new HttpError(413, 'body too large');
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString('utf8'));
  } catch {
    throw new HttpError(400, 'body is not valid JSON');
  }
}

function validate(x) {
  if (typeof x !== 'object' || x === null) throw new HttpError(422, 'expected an object');
  const { qty, unit = 'pcs', best_before = null } = x;
  if (!Number.isFinite(qty) || qty < 0) throw new HttpError(422, 'qty must be a number >= 0');
  if (best_before !== null && Number.isNaN(Date.parse(best_before))) {
    throw new HttpError(422, 'best_before must be a date');
  }
  return { qty, unit: String(unit), best_before };
}

async function route(req) {
  const url = new URL(req.url, 'http://localhost');
  const [, root, name, extra] = url.pathname.split('/').map(decodeURIComponent);
  if (root !== 'items' || extra !== undefined) throw new HttpError(404, 'no such path');

  if (!name) {
    if (req.method !== 'GET') throw new HttpError(405, 'only GET here');
    let rows = [...items].map(([n, v]) => ({ name: n, ...v }));
    const days = url.searchParams.get('expiring');
    if (days !== null) {
      const limit = Date.now() + Number(days) * DAY;
      rows = rows.filter((r) => r.best_before && Date.parse(r.best_before) <= limit);
    }
    rows.sort((a, b) => a.name.localeCompare(b.name));
    return [200, rows];
  }

  switch (req.method) {
    case 'GET': {
      if (!items.has(name)) throw new HttpError(404, `no ${name}`);
      return [200, { name, ...items.get(name) }];
    }
    case 'PUT': {
      const value = validate(await readJson(req));
      const created = !items.has(name);
      items.set(name, value);
      await save();
      return [created ? 201 : 200, { name, ...value }];
    }
    case 'DELETE': {
      if (!items.delete(name)) throw new HttpError(404, `no ${name}`);
      await save();
      return [204, null];
    }
    default:
      throw new HttpError(405, 'GET, PUT or DELETE');
  }
}

const server = createServer(async (req, res) => {
  let status, body;
  try {
    [status, body] = await route(req);
  } catch (err) {
    status = err.status ?? (err instanceof URIError ? 400 : 500);
    body = { error: status === 500 ? 'internal error' : err.message };
    if (status === 500) console.error(err);
  }
  res.writeHead(status, { 'content-type': 'application/json' });
  res.end(body === null ? undefined : JSON.stringify(body));
});

server.listen(Number(process.env.PORT ?? 8087), () => {
  console.log('pantry on', server.address().port);
});
