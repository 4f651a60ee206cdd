package node

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// tomlItem is a table header or a key with its value, and where its lines are
// in the text.
type tomlItem struct {
	kind  unstable.Kind
	path  []string
	depth int // how many elements of path are the table's
	start int // first byte of the line the item begins on
	end   int // first byte after the line the item ends on
	// For keys with a string value, where the value stands, quotes included.
	valueStart, valueEnd int
}

func (it tomlItem) isTable() bool {
	return it.kind == unstable.Table || it.kind == unstable.ArrayTable
}

// decodeTOML decodes strictly enough to compare two documents.
func decodeTOML(src []byte) (map[string]any, error) {
	doc := map[string]any{}
	if err := toml.Unmarshal(src, &doc); err != nil {
		return nil, fmt.Errorf("not valid TOML: %w", err)
	}
	return doc, nil
}

// tomlItems lists what stands in src from top to bottom; the path of a key
// includes that of its table.
func tomlItems(src []byte) ([]tomlItem, error) {
	var (
		p     unstable.Parser
		items []tomlItem
		table []string
	)
	p.Reset(src)
	for p.NextExpression() {
		e := p.Expression()
		var keys []string
		first, last := -1, 0
		for it := e.Key(); it.Next(); {
			raw := it.Node().Raw
			if first < 0 {
				first = int(raw.Offset)
			}
			last = int(raw.Offset + raw.Length)
			keys = append(keys, string(it.Node().Data))
		}
		item := tomlItem{kind: e.Kind}
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = keys
			item.path = keys
		case unstable.KeyValue:
			item.path, item.depth = slices.Concat(table, keys), len(table)
			last = int(e.Raw.Offset + e.Raw.Length)
			if v := e.Value(); v.Kind == unstable.String {
				item.valueStart, item.valueEnd = int(v.Raw.Offset), int(v.Raw.Offset+v.Raw.Length)
			}
		default:
			continue
		}
		item.start = bytes.LastIndexByte(src[:max(first, 0)], '\n') + 1
		item.end = lineEnd(src, last)
		items = append(items, item)
	}
	if err := p.Error(); err != nil {
		return nil, fmt.Errorf("not valid TOML: %w", err)
	}
	return items, nil
}

// lineEnd returns the offset after the newline that follows at.
func lineEnd(src []byte, at int) int {
	if i := bytes.IndexByte(src[at:], '\n'); i >= 0 {
		return at + i + 1
	}
	return len(src)
}

// lookup walks nested tables; nil when a step is missing.
func lookup(doc map[string]any, path ...string) any {
	var v any = doc
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[key]
	}
	return v
}

// prune removes the value at path and the tables that become empty by it.
func prune(doc map[string]any, path ...string) {
	if len(path) == 1 {
		delete(doc, path[0])
		return
	}
	next, ok := doc[path[0]].(map[string]any)
	if !ok {
		return
	}
	prune(next, path[1:]...)
	if len(next) == 0 {
		delete(doc, path[0])
	}
}

// sameTOML says whether two documents mean the same, apart from the value at
// path and tables that are empty without it.
func sameTOML(a, b []byte, path ...string) (bool, error) {
	x, err := decodeTOML(a)
	if err != nil {
		return false, err
	}
	y, err := decodeTOML(b)
	if err != nil {
		return false, err
	}
	prune(x, path...)
	prune(y, path...)
	return reflect.DeepEqual(x, y), nil
}

// isBlank says whether src is nothing but white space, as TOML and JSON know it.
func isBlank(src []byte) bool { return len(bytes.Trim(src, " \t\r\n")) == 0 }

// splice returns src with the bytes from start to end replaced.
func splice(src []byte, start, end int, with string) []byte {
	out := make([]byte, 0, len(src)-(end-start)+len(with))
	out = append(out, src[:start]...)
	out = append(out, with...)
	return append(out, src[end:]...)
}
