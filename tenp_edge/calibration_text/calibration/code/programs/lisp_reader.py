"""A tiny s-expression interpreter: enough Scheme to compute factorials.

I wrote it to explain closures to a colleague, so clarity beat speed each time
the two disagreed. Integers, symbols, strings, `quote`, `if`, `define`,
`lambda`, `let` and a handful of primitives.
"""
import operator
import re

TOKEN = re.compile(r"""\s*(?:;[^\n]*\n\s*)*(?P<tok>[()']|"(?:\\.|[^"\\])*"|[^\s()';"]+)""")


class Symbol(str):
    """A name. Being a str subclass lets it key the environment dict directly."""


class LispError(Exception):
    pass


def tokenize(src):
    pos, src = 0, src.rstrip() + "\n"
    while src[pos:].strip():
        m = TOKEN.match(src, pos)
        if m is None:
            rest = re.sub(r";[^\n]*", "", src[pos:]).strip()
            if rest:
                raise LispError(f"cannot read {rest[:20]!r}")
            return
        yield m.group("tok")
        pos = m.end()


def parse(src):
    """Return the list of top-level forms in ``src``."""
    stack, quotes = [[]], [[]]

    def emit(form):
        # A pending ' applies to the very next complete form, however deep.
        while quotes[-1]:
            quotes[-1].pop()
            form = [Symbol("quote"), form]
        stack[-1].append(form)

    for tok in tokenize(src):
        if tok == "(":
            stack.append([])
            quotes.append([])
        elif tok == ")":
            if len(stack) == 1:
                raise LispError("unexpected )")
            quotes.pop()
            emit(stack.pop())
        elif tok == "'":
            quotes[-1].append(True)
        else:
            emit(atom(tok))
    if len(stack) > 1:
        raise LispError(f"{len(stack) - 1} unclosed (")
    return stack[0]


def atom(tok):
    if tok[0] == '"':
        return tok[1:-1].replace('\\"', '"').replace("\\n", "\n")
    try:
        return int(tok)
    except ValueError:
        return {"#t": True, "#f": False}.get(tok, Symbol(tok))


class Env(dict):
    def __init__(self, names=(), values=(), outer=None):
        super().__init__(zip(names, values))
        self.outer = outer

    def find(self, name):
        env = self
        while env is not None:
            if name in env:
                return env[name]
            env = env.outer
        raise LispError(f"unbound variable {name}")


class Closure:
    def __init__(self, params, body, env):
        self.params, self.body, self.env = params, body, env

    def bind(self, args):
        if len(args) != len(self.params):
            raise LispError(f"expected {len(self.params)} args, got {len(args)}")
        return Env(self.params, args, self.env)


GLOBALS = {
    "+": lambda *a: sum(a),
    "*": lambda *a: __import__("math").prod(a),
    "-": lambda a, *b: a - sum(b) if b else -a,
    "=": operator.eq, "<": operator.lt, ">": operator.gt,
    "cons": lambda a, b: [a, *b], "car": lambda x: x[0], "cdr": lambda x: x[1:],
    "null?": lambda x: x == [], "list": lambda *a: list(a),
}


def evaluate(x, env):
    # The while loop is the tail-call optimisation: `if` branches and closure
    # bodies replace x and env and go round again instead of recursing.
    while True:
        if isinstance(x, Symbol):
            return env.find(x)
        if not isinstance(x, list):
            return x
        if not x:
            raise LispError("empty application")
        head, *rest = x
        if head == "quote":
            return rest[0]
        if head == "if":
            test = evaluate(rest[0], env)
            if test is not False:
                x = rest[1]
            elif len(rest) == 3:
                x = rest[2]
            else:
                return None
        elif head == "define":
            if isinstance(rest[0], list):          # (define (f a b) body)
                (name, *params), body = rest[0], rest[1]
                env[name] = Closure(params, body, env)
            else:
                env[rest[0]] = evaluate(rest[1], env)
            return None
        elif head == "lambda":
            return Closure(rest[0], rest[1], env)
        elif head == "let":
            names = [b[0] for b in rest[0]]
            env, x = Env(names, [evaluate(b[1], env) for b in rest[0]], env), rest[1]
        else:
            fn = evaluate(head, env)
            args = [evaluate(a, env) for a in rest]
            if not isinstance(fn, Closure):
                return fn(*args)
            env, x = fn.bind(args), fn.body


def run(src, env=None):
    env = env if env is not None else Env(GLOBALS.keys(), GLOBALS.values())
    out = None
    for form in parse(src):
        out = evaluate(form, env)
    return out


if __name__ == "__main__":
    assert run("(define (f n) (if (< n 2) 1 (* n (f (- n 1))))) (f 20)") == 2432902008176640000
    # 50 000 iterations would blow the Python stack without the loop above
    assert run("(define (count n acc) (if (= n 0) acc (count (- n 1) (+ acc 1)))) (count 50000 0)") == 50000
    assert run("(let ((k 3)) ((lambda (x) (* k x)) 14))") == 42
    assert run("(cdr '(a b c))") == ["b", "c"]
    print("ok")
