package trust

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Limits of what a policy is made of.
const (
	// MaxFile bounds a policy and a file with keys, in bytes.
	MaxFile = 1 << 20
	// MaxKeys bounds the keys of a policy.
	MaxKeys = 4096
)

// Settings say what a policy trusts besides what manifests bind.
type Settings struct {
	// Keys are public keys: PEM text, or names of files with such, which may
	// have * in their last element to stand for many.
	Keys []string
	// Unsigned are repositories whose indexes need no signature: HOST/REPO, or
	// HOST/PREFIX/* and HOST/* for all below.
	Unsigned []string
}

// Policy says whose indexes are used. The zero Policy, and a nil one, trust
// only what the manifests of images bind.
type Policy struct {
	keys     []PublicKey // sorted by ID, distinct
	unsigned []pattern
}

// ParseSettings reads a YAML document with the keys "keys" and "unsigned",
// which are lists. Unknown and repeated keys are errors. All mistakes are
// reported at once, with name (of the file) and line.
func ParseSettings(name string, data []byte) (Settings, error) {
	var s Settings
	if len(data) > MaxFile {
		return s, fmt.Errorf("%s: %d bytes, at most %d", name, len(data), MaxFile)
	}
	root, err := mapping(name, data)
	if err != nil || root == nil {
		return s, err
	}
	var errs []error
	seen := map[string]bool{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		var to *[]string
		switch key.Value {
		case "keys":
			to = &s.Keys
		case "unsigned":
			to = &s.Unsigned
		default:
			errs = append(errs, fmt.Errorf("%s:%d: unknown key %.80q: want keys or unsigned", name, key.Line, key.Value))
			continue
		}
		if seen[key.Value] {
			errs = append(errs, fmt.Errorf("%s:%d: key %q is set twice", name, key.Line, key.Value))
			continue
		}
		seen[key.Value] = true
		if *to, err = list(value); err != nil {
			errs = append(errs, fmt.Errorf("%s:%d: %s: %w", name, value.Line, key.Value, err))
		}
	}
	return s, errors.Join(errs...)
}

// mapping returns the root of the only document, nil if there is no content.
func mapping(name string, data []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("parse %s: %w", name, err)
	}
	root := doc.Content[0]
	switch {
	case root.Kind == yaml.ScalarNode && root.Tag == "!!null":
		return nil, nil
	case root.Kind != yaml.MappingNode:
		return nil, fmt.Errorf("%s:%d: want lines of the form \"key: value\"", name, root.Line)
	}
	if err := dec.Decode(&more); err == nil {
		return nil, fmt.Errorf("%s:%d: second YAML document: want only one", name, more.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("parse %s: %w", name, err)
	}
	return root, nil
}

func list(n *yaml.Node) ([]string, error) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil, nil // all entries are commented out
	}
	if n.Kind != yaml.SequenceNode {
		return nil, errors.New("want a list: [a, b] or lines of \"- a\"")
	}
	entries := make([]string, 0, len(n.Content))
	for _, e := range n.Content {
		if e.Kind != yaml.ScalarNode || e.Tag != "!!str" || strings.TrimSpace(e.Value) == "" {
			return nil, fmt.Errorf("list entry on line %d: want text", e.Line)
		}
		entries = append(entries, strings.TrimSpace(e.Value))
	}
	return entries, nil
}

// Policy makes a policy. Files names the contents of a file, or of all that a
// name with * stands for; LoadPolicy's reads the disk. All mistakes are
// reported at once.
func (s Settings) Policy(files func(name string) (map[string][]byte, error)) (*Policy, error) {
	p := &Policy{}
	var errs []error
	for _, entry := range s.Keys {
		keys, err := readKeys(entry, files)
		if err != nil {
			errs = append(errs, fmt.Errorf("trust.keys: %w", err))
		}
		p.keys = append(p.keys, keys...)
	}
	for _, entry := range s.Unsigned {
		u, err := parsePattern(entry)
		if err != nil {
			errs = append(errs, fmt.Errorf("trust.unsigned: %w", err))
		}
		p.unsigned = append(p.unsigned, u)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return p.With()
}

func readKeys(entry string, files func(string) (map[string][]byte, error)) ([]PublicKey, error) {
	if strings.HasPrefix(entry, "-----BEGIN ") {
		return ParsePublicKeys([]byte(entry))
	}
	contents, err := files(entry)
	if err != nil {
		return nil, err
	}
	var all []PublicKey
	for _, name := range slices.Sorted(maps.Keys(contents)) {
		keys, err := ParsePublicKeys(contents[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, keys...)
	}
	return all, nil
}

// With returns a policy that also trusts the given keys, such as those that a
// node has learnt from its supernode.
func (p *Policy) With(keys ...PublicKey) (*Policy, error) {
	more := &Policy{}
	if p != nil {
		more.keys, more.unsigned = slices.Clone(p.keys), p.unsigned
	}
	more.keys = append(more.keys, keys...)
	slices.SortFunc(more.keys, func(a, b PublicKey) int {
		return strings.Compare(a.id+string(a.key), b.id+string(b.key))
	})
	more.keys = slices.CompactFunc(more.keys, PublicKey.Equal)
	if len(more.keys) > MaxKeys {
		return nil, fmt.Errorf("trust.keys: %d keys, at most %d", len(more.keys), MaxKeys)
	}
	return more, nil
}

// Keys returns the keys whose signatures count, sorted by ID. Their signatures
// of an artifact are found by artifact.SignatureTag.
func (p *Policy) Keys() []PublicKey {
	if p == nil {
		return nil
	}
	return slices.Clone(p.keys)
}

// Unsigned reports whether indexes in a repository, HOST/REPO, need no
// signature.
func (p *Policy) Unsigned(repository string) bool {
	return p != nil && slices.ContainsFunc(p.unsigned, func(u pattern) bool { return u.matches(repository) })
}
