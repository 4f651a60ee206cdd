package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"
)

// parseYAML reads the file's content into values by field. It reports all
// mistakes at once, each with file and line.
func (b *Binding) parseYAML(file string, data []byte) (map[*field]any, error) {
	values := map[*field]any{}
	root, err := document(file, data)
	if err != nil || root == nil {
		return values, err
	}
	var errs []error
	fail := func(n *yaml.Node, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s:%d: %w", file, n.Line, fmt.Errorf(format, args...)))
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, node := root.Content[i], root.Content[i+1]
		f, known := b.byKey[key.Value]
		first, repeated := lines[key.Value]
		switch {
		case repeated:
			fail(key, "key %q is already set on line %d", clip(key.Value), first)
			continue
		case !known:
			fail(key, "unknown key %q%s", clip(key.Value), b.suggest(key.Value))
			continue
		}
		lines[key.Value] = key.Line
		v, err := f.decode(node)
		if err != nil {
			fail(node, "%s: %w", f.key, err)
			continue
		}
		values[f] = v
	}
	return values, errors.Join(errs...)
}

// document returns the mapping at the root of the file's only document, nil
// for a file without content.
func document(file string, data []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("parse %s: %w", file, err)
	}
	root := doc.Content[0]
	switch {
	case root.Kind == yaml.ScalarNode && root.Tag == "!!null":
		return nil, nil
	case root.Kind != yaml.MappingNode:
		return nil, fmt.Errorf("%s:%d: want lines of the form \"key: value\"", file, root.Line)
	}
	if err := dec.Decode(&more); err == nil {
		return nil, fmt.Errorf("%s:%d: second YAML document: want only one", file, more.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("parse %s: %w", file, err)
	}
	return root, nil
}

// decode reads the value of one key. The text of a scalar is taken as written,
// so that every kind is read by the same parser as its flag.
func (f *field) decode(n *yaml.Node) (any, error) {
	if !f.isList() {
		text, err := scalar(n)
		if err != nil {
			return nil, err
		}
		return f.parse(text)
	}
	if n.Kind != yaml.SequenceNode {
		return nil, errors.New("want a list: [a, b] or lines of \"- a\"")
	}
	list := make([]string, 0, len(n.Content))
	for _, entry := range n.Content {
		text, err := scalar(entry)
		if err != nil {
			return nil, fmt.Errorf("list entry: %w", err)
		}
		list = append(list, text)
	}
	return list, f.check(list)
}

func scalar(n *yaml.Node) (string, error) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch {
	case n.Kind != yaml.ScalarNode:
		return "", errors.New("want a single value, not a list or mapping")
	case n.Tag == "!!null":
		return "", errors.New("has no value; write \"\" for empty text, or remove the key to get the default")
	}
	return n.Value, nil
}

// suggest names the known key closest to a mistyped one.
func (b *Binding) suggest(key string) string {
	const maxDistance = 2
	best, distance := "", maxDistance+1
	if len(key) > 64 {
		return ""
	}
	for _, f := range b.fields {
		if d := editDistance(key, f.key); d < distance {
			best, distance = f.key, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// editDistance counts the single-byte insertions, deletions and replacements
// that turn a into b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
