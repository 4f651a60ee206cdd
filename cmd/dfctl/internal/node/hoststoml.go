package node

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

const (
	beginMark = "# BEGIN damselfly: written by dfctl node setup, taken out by dfctl node remove\n"
	endMark   = "# END damselfly\n"
)

// errNotOurs says that our part of a file can no longer be told from other
// people's edits.
var errNotOurs = errors.New("our part can no longer be told apart from edits made since setup")

// hostsFile describes the mirror entry of one hosts.toml.
type hostsFile struct {
	mirror      string // URL
	server      string // URL of the upstream; empty leaves the choice to containerd
	dialTimeout bool   // containerd knows dial_timeout (2.1 and later)
}

// table is the entry without marks, in the form containerd reads.
func (h hostsFile) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "[host.%q]\n", h.mirror)
	b.WriteString("  capabilities = [\"pull\", \"resolve\"]\n")
	if h.dialTimeout {
		// Loopback either answers at once or nobody is there.
		b.WriteString("  dial_timeout = \"200ms\"\n")
	}
	return b.String()
}

// entry decodes table, for comparison with what is found in a file.
func (h hostsFile) entry() map[string]any {
	m := map[string]any{"capabilities": []any{"pull", "resolve"}}
	if h.dialTimeout {
		m["dial_timeout"] = "200ms"
	}
	return m
}

// insert puts the mirror before every other host of src, because containerd
// tries hosts in the order of the text. All other text stays as it is. block
// is what was inserted.
func (h hostsFile) insert(src []byte) (out []byte, block string, err error) {
	doc, err := decodeTOML(src)
	if err != nil {
		return nil, "", err
	}
	if isBlank(src) {
		block = beginMark
		if h.server != "" {
			block += fmt.Sprintf("server = %q\n\n", h.server)
		}
		block += h.table() + endMark
		return append(bytes.Clone(src), block...), block, nil
	}
	items, err := tomlItems(src)
	if err != nil {
		return nil, "", err
	}
	if lookup(doc, "host", h.mirror) != nil {
		return h.present(src, items)
	}
	for _, it := range items {
		if it.kind == unstable.KeyValue && it.path[0] == "host" && it.depth < 2 {
			return nil, "", errors.New("its hosts are not written as [host.\"…\"] sections, so the mirror cannot be put first: rewrite them as sections")
		}
	}
	at := insertionPoint(src, items)
	block = beginMark + h.table() + endMark
	if at > 0 && src[at-1] != '\n' {
		block = "\n" + block
	}
	out = splice(src, at, at, block)
	same, err := sameTOML(src, out, "host", h.mirror)
	if err != nil || !same {
		return nil, "", errors.Join(errors.New("the mirror cannot be added without changing something else"), err)
	}
	return out, block, nil
}

// present answers for a file that names the mirror without our doing: right if
// it comes first, otherwise the operator has to decide.
func (h hostsFile) present(src []byte, items []tomlItem) ([]byte, string, error) {
	for _, it := range items {
		if it.isTable() && len(it.path) >= 2 && it.path[0] == "host" {
			if it.path[1] == h.mirror {
				return src, "", nil
			}
			break
		}
	}
	return nil, "", fmt.Errorf("it already names %s, but not as its first [host.\"…\"] section: move it to the top or delete it", h.mirror)
}

// insertionPoint is the start of the first table, above the comment lines that
// stand directly over it, or the end of the text.
func insertionPoint(src []byte, items []tomlItem) int {
	floor := 0
	for _, it := range items {
		if !it.isTable() {
			floor = it.end
			continue
		}
		at := it.start
		for at > floor {
			prev := bytes.LastIndexByte(src[:at-1], '\n') + 1
			if line := bytes.TrimSpace(src[prev:at]); len(line) == 0 || line[0] != '#' {
				break
			}
			at = prev
		}
		return at
	}
	return len(src)
}

// cutHosts takes block out of an edited hosts.toml. It refuses when more than
// what setup put there, or less, would go.
func cutHosts(cur []byte, block string, h hostsFile) ([]byte, error) {
	out, err := cutBlock(cur, block, "")
	if err != nil {
		return nil, err
	}
	was, err := decodeTOML(cur)
	if err != nil {
		return nil, err
	}
	is, err := decodeTOML(out)
	if err != nil {
		return nil, errNotOurs
	}
	// Keys that somebody added below our section belong to it.
	if !reflect.DeepEqual(lookup(was, "host", h.mirror), any(h.entry())) {
		return nil, errNotOurs
	}
	prune(was, "host", h.mirror)
	prune(is, "host", h.mirror)
	if strings.Contains(block, "\nserver = ") {
		delete(was, "server")
	}
	if !reflect.DeepEqual(was, is) {
		return nil, errNotOurs
	}
	return out, nil
}

// cutBlock replaces the one occurrence of block.
func cutBlock(cur []byte, block, with string) ([]byte, error) {
	if block == "" || bytes.Count(cur, []byte(block)) != 1 {
		return nil, errNotOurs
	}
	return bytes.Replace(cur, []byte(block), []byte(with), 1), nil
}
