#!/usr/bin/env python3
"""Checks that the imports between the files of src/ form no circle, and that the map in src/lib.rs is true.

    tests/circles.py [--edges] [TREE]

Nodes are files. File A has an edge to file B where A names an item that B defines: in a `use`, or as a path in the
code or in a macro call. Re-exports are followed to the definition. Not an edge: `mod x;`, a re-export of a module's
own descendant (until the file uses the name itself), and all code under `#[cfg(test)]`. Names from a glob import count
where they are used. A method call is not an edge, since it names no item.

The map is the table in the crate's documentation: a module uses only modules that the table names before it.

Prints each circle with file and line, and exits with 1 if there is one or the map is wrong. --edges prints all edges.
"""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

LEXER = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
    |(?P<block>/\*)
    |(?P<string>[bc]?r(?P<hashes>\#*)".*?"(?P=hashes)|[bc]?"(?:\\.|[^"\\])*")
    |(?P<char>b?'(?:\\(?:u\{[^}]*\}|x..|.)|[^'\\\n])'|'[A-Za-z_]\w*)
    |(?P<ident>(?:r\#)?[A-Za-z_]\w*)
    |(?P<number>\d\w*(?:\.\d\w*)?)
    |(?P<punct>::|.)""",
    re.VERBOSE | re.DOTALL,
)
CLOSING = {"(": ")", "[": "]", "{": "}"}
# These items end at a semicolon even if braces come before it.
TO_SEMICOLON = {"use", "type", "static", "const", "let"}
DEFINING = {"fn", "struct", "enum", "union", "trait", "type", "const", "static", "mod"}
MODIFIERS = {"async", "unsafe", "default", "extern"}


@dataclass
class Token:
    """A token, or a group of tokens between brackets, whose text is the opening bracket."""

    kind: str
    text: str
    line: int
    inner: list | None = None

    def is_group(self, bracket):
        return self.inner is not None and self.text == bracket


@dataclass
class Import:
    """A name that a `use` binds."""

    path: list
    line: int
    reexport: bool


@dataclass
class Module:
    """A module: the scope of its names, and the code that has to be scanned for paths."""

    file: Path
    parent: "Module | None"
    children: dict = field(default_factory=dict)
    items: set = field(default_factory=set)
    imports: dict = field(default_factory=dict)
    globs: list = field(default_factory=list)
    uses: list = field(default_factory=list)
    code: list = field(default_factory=list)

    def is_ancestor_of(self, other):
        while other is not None and other is not self:
            other = other.parent
        return other is self


class TreeError(Exception):
    """The source cannot be read as Rust."""


def lex(text, name):
    """The token tree of a file."""
    stack, at, line = [Token("root", "", 1, [])], 0, 1
    while at < len(text):
        match = LEXER.match(text, at)
        kind, start = match.lastgroup, line
        if kind == "hashes":
            kind = "string"
        end = block_end(text, at) if kind == "block" else match.end()
        token = text[at:end]
        line += token.count("\n")
        at = end
        if kind in ("space", "block"):
            continue
        if kind == "punct" and token in CLOSING:
            group = Token("group", token, start, [])
            stack[-1].inner.append(group)
            stack.append(group)
        elif kind == "punct" and token in CLOSING.values():
            if CLOSING.get(stack[-1].text) != token:
                raise TreeError(f"{name}:{start}: unexpected {token}")
            stack.pop()
        else:
            stack[-1].inner.append(Token(kind, token.removeprefix("r#"), start))
    if len(stack) != 1:
        raise TreeError(f"{name}:{stack[-1].line}: {stack[-1].text} is not closed")
    return stack[0].inner


def block_end(text, at):
    """The end of a block comment; these nest."""
    depth = 0
    for match in re.finditer(r"/\*|\*/", text[at:]):
        depth += 1 if match.group() == "/*" else -1
        if depth == 0:
            return at + match.end()
    return len(text)


def flat(tokens):
    for token in tokens:
        yield token
        if token.inner is not None:
            yield from flat(token.inner)


def is_test_attribute(attribute):
    """Whether code with this attribute exists in test builds only."""
    words = [token.text for token in flat(attribute) if token.kind == "ident"]
    return words == ["test"] or (words[:1] == ["cfg"] and "test" in words and not {"not", "any"} & set(words))


def text_at(tokens, at):
    return tokens[at].text if at < len(tokens) else ""


def attributes_at(tokens, at):
    """The attributes that begin here, and where they end."""
    found = []
    while text_at(tokens, at) == "#" and at + 1 < len(tokens):
        bracket = at + 2 if text_at(tokens, at + 1) == "!" else at + 1
        if bracket >= len(tokens) or not tokens[bracket].is_group("["):
            break
        found.append(tokens[bracket].inner)
        at = bracket + 1
    return found, at


def keyword_at(tokens, at):
    """The item keyword after visibility and modifiers, where it stands, and whether the item is public."""
    public = text_at(tokens, at) == "pub"
    if public:
        at += 2 if at + 1 < len(tokens) and tokens[at + 1].is_group("(") else 1
    while text_at(tokens, at) in MODIFIERS or (text_at(tokens, at) == "const" and text_at(tokens, at + 1) in {"fn", *MODIFIERS}):
        at += 2 if at + 1 < len(tokens) and tokens[at + 1].kind == "string" else 1
    return text_at(tokens, at), at, public


def item_end(tokens, at):
    """Where the item, field, arm or statement that begins here ends."""
    keyword, at, _ = keyword_at(tokens, at)
    is_item = keyword in DEFINING or keyword in {"use", "impl", "let", "macro_rules"}
    while at < len(tokens):
        token = tokens[at]
        at += 1
        if token.text == ";" or (token.is_group("{") and keyword not in TO_SEMICOLON) or (token.text == "," and not is_item):
            break
    return at


class Tree:
    """The modules of a crate and the edges between their files."""

    def __init__(self, src):
        self.src = src
        self.modules = []
        self.edges = {}
        self.crates = {}
        manifest = src.parent / "Cargo.toml"
        name = re.search(r'^name = "(.+)"', manifest.read_text(), re.MULTILINE) if manifest.exists() else None
        self.name = name.group(1).replace("-", "_") if name else "crate"
        self.library = self.load(src / "lib.rs", None, src)
        if (src / "main.rs").exists():
            self.load(src / "main.rs", None, src)
        for module in self.modules:
            self.link(module)

    # Reading modules.

    def load(self, file, parent, directory):
        module = Module(file, parent)
        self.modules.append(module)
        self.read_items(module, lex(file.read_text(), file), directory)
        return module

    def read_items(self, module, tokens, directory):
        at = 0
        while at < len(tokens):
            attributes, start = attributes_at(tokens, at)
            keyword, word, public = keyword_at(tokens, start)
            end = max(item_end(tokens, start), at + 1)
            if not any(map(is_test_attribute, attributes)):
                module.code.extend(attributes)
                self.read_item(module, keyword, tokens[word:end], public, directory)
            at = end

    def read_item(self, module, keyword, item, public, directory):
        name = text_at(item, 1)
        if keyword == "mod" and len(item) > 2 and item[2].is_group("{"):
            child = Module(module.file, module)
            self.modules.append(child)
            module.children[name] = child
            self.read_items(child, item[2].inner, directory / name)
        elif keyword == "mod":
            places = [directory / f"{name}.rs", directory / name / "mod.rs"]
            file = next((place for place in places if place.exists()), None)
            if file is None:
                raise TreeError(f"{module.file}:{item[0].line}: there is no file for mod {name}")
            module.children[name] = self.load(file, module, directory / name)
        elif keyword == "use":
            read_use(module, item, public)
        else:
            if keyword in DEFINING:
                module.items.add(name)
            elif keyword == "macro_rules":
                module.items.add(text_at(item, 2))
            module.code.append(item)

    # Resolving names.

    def lookup(self, module, name, seen):
        """What a name means in a module: a Module, the Module that defines the item, or None."""
        if (id(module), name) in seen:
            return None, False
        seen = seen | {(id(module), name)}
        if name in module.items:
            return module, True
        if name in module.children:
            return module.children[name], False
        if name in module.imports:
            return self.resolve(module, module.imports[name].path, seen)
        for path, _ in module.globs:
            target, is_item = self.resolve(module, path, seen)
            if target is not None and not is_item:
                found = self.lookup(target, name, seen)
                if found[0] is not None:
                    return found
        return None, False

    def resolve(self, module, path, seen=frozenset()):
        """What a path means in a module, and whether that is an item."""
        first, rest = path[0], path[1:]
        if first == "crate":
            current = module
            while current.parent is not None:
                current = current.parent
        elif first == self.name:
            current = self.library
        elif first == "self":
            current = module
        elif first == "super":
            current = module.parent
        else:
            current, is_item = self.lookup(module, first, seen)
            if current is not None and not is_item and rest and first in module.items:
                current = module.children[first]
            if is_item:
                # With a module of the same name, only the rest of the path can tell.
                child = module.children.get(first)
                if child is None or not rest or self.lookup(child, rest[0], seen)[0] is None:
                    return current, True
                current = child
        for at, name in enumerate(rest):
            if current is None:
                return None, False
            if name == "super":
                current = current.parent
                continue
            if name == "self":
                continue
            found, is_item = self.lookup(current, name, seen)
            more = rest[at + 1 :]
            child = current.children.get(name)
            if is_item and more and child is not None and self.lookup(child, more[0], seen)[0] is not None:
                found, is_item = child, False
            if found is None:
                if (id(current), name) in seen or name in current.imports:
                    # A re-export of another crate's item.
                    return None, False
                # A macro defines it.
                return current, True
            if is_item:
                return found, True
            current = found
        return current, False

    # Finding edges.

    def link(self, module):
        for path, line, reexport in module.uses:
            target, is_item = self.resolve(module, path)
            if is_item and not (reexport and module.is_ancestor_of(target)):
                self.edge(module, target, line, path)
        for tokens in module.code:
            self.scan(module, tokens)

    def edge(self, module, target, line, path):
        if target.file != module.file:
            self.edges.setdefault((module.file, target.file), (line, "::".join(path)))

    def scan(self, module, tokens):
        at = 0
        while at < len(tokens):
            token = tokens[at]
            attributes, after = attributes_at(tokens, at)
            if attributes:
                at = after
                if any(map(is_test_attribute, attributes)):
                    at = item_end(tokens, after)
                else:
                    for attribute in attributes:
                        self.scan_attribute(module, attribute)
            elif token.inner is not None:
                self.scan(module, token.inner)
                at += 1
            elif token.text == "use" and token.kind == "ident":
                end = item_end(tokens, at)
                read_use(module, tokens[at:end], False, self.use_in_body)
                at = end
            elif token.kind == "ident":
                path = [token.text]
                while text_at(tokens, at + 1) == "::" and at + 2 < len(tokens) and tokens[at + 2].kind == "ident":
                    path.append(tokens[at + 2].text)
                    at += 2
                before = tokens[at - 2 * len(path) + 1].text if at - 2 * len(path) + 1 >= 0 else ""
                if before not in (".", "::"):
                    self.scan_path(module, path, token.line)
                at += 1
            else:
                at += 1

    def use_in_body(self, module, name, path, line):
        target, is_item = self.resolve(module, path)
        if is_item:
            self.edge(module, target, line, path)
        elif name != "*":
            module.imports.setdefault(name, Import(path, line, False))

    def scan_attribute(self, module, attribute):
        """Paths in an attribute, also those in strings, as in serde's `with`."""
        self.scan(module, attribute)
        for token in flat(attribute):
            if token.kind == "string" and re.fullmatch(r'"\w+(::\w+)+"', token.text):
                self.scan_path(module, token.text.strip('"').split("::"), token.line)

    def scan_path(self, module, path, line):
        if len(path) == 1 and (path[0] in module.items or path[0] in ("crate", "self", "super", "Self")):
            return
        target, is_item = self.resolve(module, path)
        if is_item and target is not None:
            self.edge(module, target, line, path)


def read_use(module, item, public, bind=None):
    """Binds what a `use` item names."""
    bind = bind or bind_in_module(public)
    for path, name, line in use_tree(item[1:], []):
        bind(module, name, path, line)


def bind_in_module(public):
    def bind(module, name, path, line):
        if name == "*":
            module.globs.append((path, line))
            return
        module.imports[name] = Import(path, line, public)
        module.uses.append((path, line, public))

    return bind


def use_tree(tokens, prefix):
    """The paths of a use tree, each with the name that it binds."""
    parts, part = [], []
    for token in tokens:
        if token.text in (",", ";"):
            parts.append(part)
            part = []
        else:
            part.append(token)
    parts.append(part)
    for part in filter(None, parts):
        path, line = list(prefix), part[0].line
        # `::name` is another crate's.
        if part[0].text == "::":
            continue
        name = None
        for at, token in enumerate(part):
            if token.inner is not None:
                yield from use_tree(token.inner, path)
                path = None
                break
            if token.text == "as":
                name = text_at(part, at + 1)
                break
            if token.text == "*":
                name = "*"
            elif token.text != "::":
                path.append(token.text)
        if path:
            if path[-1] == "self" and len(path) > 1:
                path.pop()
            yield path, name or path[-1], line


# Circles.


def components(nodes, successors):
    """The strongly connected components with more than one node (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for after in successors[node]:
            if after not in index:
                visit(after)
                low[node] = min(low[node], low[after])
            elif after in stack:
                low[node] = min(low[node], index[after])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in nodes:
        if node not in index:
            visit(node)
    return found


def way(start, end, successors, within):
    """The shortest way from one file to another inside a component."""
    ways, seen = [[start]], {start}
    for path in ways:
        if path[-1] == end:
            return path
        for after in sorted(successors[path[-1]] & within - seen):
            seen.add(after)
            ways.append([*path, after])
    raise AssertionError("a component is connected")


def circles(edges):
    """Short circles that together hold every edge inside a component; each a list of edges."""
    nodes = sorted({node for edge in edges for node in edge})
    successors = {node: {b for a, b in edges if a == node} for node in nodes}
    found = []
    for component in components(nodes, successors):
        within, covered = set(component), set()
        for a, b in sorted(edges):
            if a in within and b in within and (a, b) not in covered:
                path = [a, *way(b, a, successors, within)]
                circle = list(zip(path, path[1:]))
                covered.update(circle)
                found.append(circle)
    return sorted(found, key=len)


# The map.


def map_order(library):
    """The modules in the order of the map: the first cells of the table in the crate's documentation."""
    order = []
    for line in library.read_text().splitlines():
        if line.startswith("//! |"):
            order += re.findall(r"`(\w+)`", line.split("|")[1])
    return order


def map_errors(tree):
    """Where the map is wrong."""
    order = map_order(tree.src / "lib.rs")
    text = (tree.src / "lib.rs").read_text()
    hidden = set(re.findall(r"#\[doc\(hidden\)\]\n(?:pub )?mod (\w+)", text))
    hidden |= set(re.findall(r"#\[cfg\((?:\w+\()?(?:test|fuzzing)\b.*\]\n(?:pub )?mod (\w+)", text))
    errors = [f"src/lib.rs: the map does not name `{name}`" for name in tree.library.children if name not in order and name not in hidden]
    errors += [f"src/lib.rs: the map names `{name}`, which is not a module" for name in order if name not in tree.library.children]
    place = {name: at for at, name in enumerate(order)}
    for (a, b), (line, path) in sorted(tree.edges.items()):
        upper, lower = (file.relative_to(tree.src).parts[0].removesuffix(".rs") for file in (a, b))
        if upper != lower and upper in place and lower in place and place[lower] > place[upper]:
            errors.append(f"{shown(tree, a)}:{line}: `{upper}` uses `{path}`, but the map names `{lower}` after `{upper}`")
    return errors


def shown(tree, file):
    return str(file.relative_to(tree.src.parent))


def report(tree):
    """The circles and the errors of the map, as lines."""
    lines = []
    for circle in circles(tree.edges):
        lines.append(f"circle of {len(circle)} files:")
        for a, b in circle:
            line, path = tree.edges[a, b]
            lines.append(f"  {shown(tree, a)}:{line} uses {path} of {shown(tree, b)}")
    return lines + map_errors(tree)


def main():
    arguments = sys.argv[1:]
    with_edges = "--edges" in arguments
    roots = [argument for argument in arguments if argument != "--edges"]
    root = Path(roots[0]) if roots else Path(__file__).resolve().parent.parent
    tree = Tree(root / "src")
    if with_edges:
        for (a, b), (line, path) in sorted(tree.edges.items()):
            print(f"{shown(tree, a)}:{line} uses {path} of {shown(tree, b)}")
    lines = report(tree)
    print("\n".join(lines) if lines else f"{len(tree.modules)} modules import each other without a circle")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
