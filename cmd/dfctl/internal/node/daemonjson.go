package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
)

const mirrorsKey = "registry-mirrors"

// span is a stretch of a document's bytes.
type span struct{ start, end int }

func (s span) of(src []byte) []byte { return src[s.start:s.end] }

// member is one key of a JSON object with its value.
type member struct {
	name string
	key  span // quotes included
	val  span
}

// jsonMembers lists the members of the one object that src consists of.
func jsonMembers(src []byte) (list []member, open int, err error) {
	dec := json.NewDecoder(bytes.NewReader(src))
	tok, err := dec.Token()
	if err != nil {
		return nil, 0, fmt.Errorf("not valid JSON: %w", err)
	}
	if tok != json.Delim('{') {
		return nil, 0, errors.New("not a JSON object")
	}
	open = int(dec.InputOffset())
	for dec.More() {
		from := int(dec.InputOffset())
		tok, err := dec.Token()
		if err != nil {
			return nil, 0, fmt.Errorf("not valid JSON: %w", err)
		}
		m := member{key: span{skipJSON(src, from), int(dec.InputOffset())}}
		m.name, _ = tok.(string)
		if m.val, err = jsonValue(dec); err != nil {
			return nil, 0, err
		}
		list = append(list, m)
	}
	if _, err := dec.Token(); err != nil {
		return nil, 0, fmt.Errorf("not valid JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, 0, errors.New("not valid JSON: something follows the object")
	}
	return list, open, nil
}

// jsonElements lists the elements of the array that src consists of.
func jsonElements(src []byte) ([]span, error) {
	dec := json.NewDecoder(bytes.NewReader(src))
	tok, err := dec.Token()
	if err != nil || tok != json.Delim('[') {
		return nil, fmt.Errorf("%q is not a list", mirrorsKey)
	}
	var list []span
	for dec.More() {
		v, err := jsonValue(dec)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

func jsonValue(dec *json.Decoder) (span, error) {
	var raw json.RawMessage
	if err := dec.Decode(&raw); err != nil {
		return span{}, fmt.Errorf("not valid JSON: %w", err)
	}
	end := int(dec.InputOffset())
	return span{end - len(raw), end}, nil
}

// skipJSON steps over white space and separators.
func skipJSON(src []byte, at int) int {
	for at < len(src) && bytes.IndexByte([]byte(" \t\r\n,:"), src[at]) >= 0 {
		at++
	}
	return at
}

// blank returns the white space that starts at at.
func blank(src []byte, at int) string {
	end := at
	for end < len(src) && bytes.IndexByte([]byte(" \t\r\n"), src[end]) >= 0 {
		end++
	}
	return string(src[at:end])
}

// findMirrors returns the place of registry-mirrors among the members, or -1.
func findMirrors(list []member) (int, error) {
	at := -1
	for i, m := range list {
		if m.name != mirrorsKey {
			continue
		}
		if at >= 0 {
			return 0, fmt.Errorf("%q is there twice", mirrorsKey)
		}
		at = i
	}
	return at, nil
}

// addDockerMirror puts url first in registry-mirrors and leaves the rest of
// the text alone. keyAdded says that the key was not there.
func addDockerMirror(src []byte, url string) (out []byte, keyAdded bool, err error) {
	if isBlank(src) {
		return fmt.Appendf(nil, "{\n  %q: [%q]\n}\n", mirrorsKey, url), true, nil
	}
	list, open, err := jsonMembers(src)
	if err != nil {
		return nil, false, err
	}
	at, err := findMirrors(list)
	if err != nil {
		return nil, false, err
	}
	if at < 0 {
		out = addMirrorsKey(src, open, len(list), url)
	} else if out, err = addMirrorsElement(src, list[at].val, url); err != nil {
		return nil, false, err
	}
	if err := checkMirrorEdit(src, out, url); err != nil {
		return nil, false, err
	}
	return out, at < 0, nil
}

func addMirrorsKey(src []byte, open, members int, url string) []byte {
	ws := blank(src, open)
	text := fmt.Sprintf("%q: [%q]", mirrorsKey, url)
	if members == 0 {
		return splice(src, open, open+len(ws), "\n  "+text+"\n")
	}
	gap := " "
	if bytes.ContainsRune([]byte(ws), '\n') {
		gap = ""
	}
	// The white space before the old first key goes before the new one too.
	return splice(src, open, open, ws+text+","+gap)
}

func addMirrorsElement(src []byte, val span, url string) ([]byte, error) {
	elements, err := jsonElements(val.of(src))
	if err != nil {
		return nil, err
	}
	for i, e := range elements {
		var have string
		if json.Unmarshal(e.of(val.of(src)), &have) != nil || have != url {
			continue
		}
		if i == 0 {
			return src, nil
		}
		return nil, fmt.Errorf("%q already names %s, but not first: move it to the front or delete it", mirrorsKey, url)
	}
	open := val.start + 1
	ws := blank(src, open)
	if len(elements) == 0 {
		return splice(src, open, open+len(ws), fmt.Sprintf("%q", url)), nil
	}
	gap := " "
	if bytes.ContainsRune([]byte(ws), '\n') {
		gap = ""
	}
	return splice(src, open, open, fmt.Sprintf("%s%q,%s", ws, url, gap)), nil
}

// checkMirrorEdit compares the documents: out must be src with url first.
func checkMirrorEdit(src, out []byte, url string) error {
	was, err := decodeJSON(src)
	if err != nil {
		return err
	}
	is, err := decodeJSON(out)
	if err != nil {
		return err
	}
	old, _ := was[mirrorsKey].([]any)
	if len(old) == 0 || old[0] != url {
		was[mirrorsKey] = append([]any{url}, old...)
	}
	if !reflect.DeepEqual(was, is) {
		return errors.New("the mirror cannot be added without changing something else")
	}
	return nil
}

func decodeJSON(src []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(src))
	dec.UseNumber()
	doc := map[string]any{}
	if err := dec.Decode(&doc); err != nil {
		return nil, fmt.Errorf("not valid JSON: %w", err)
	}
	return doc, nil
}

// cutDockerMirror takes url out of a daemon.json edited since setup. The key
// goes with it when setup added the key and nothing else is in the list.
func cutDockerMirror(cur []byte, url string, keyAdded bool) ([]byte, error) {
	list, _, err := jsonMembers(cur)
	if err != nil {
		return nil, err
	}
	at, err := findMirrors(list)
	if err != nil || at < 0 {
		return nil, errors.Join(errNotOurs, err)
	}
	val := list[at].val
	elements, err := jsonElements(val.of(cur))
	if err != nil {
		return nil, err
	}
	found := -1
	for i, e := range elements {
		var have string
		if json.Unmarshal(e.of(val.of(cur)), &have) == nil && have == url {
			if found >= 0 {
				return nil, errNotOurs
			}
			found = i
		}
	}
	if found < 0 {
		return nil, errNotOurs
	}
	if len(elements) == 1 && keyAdded {
		spans := make([]span, len(list))
		for i, m := range list {
			spans[i] = span{m.key.start, m.val.end}
		}
		return cutItem(cur, spans, at), nil
	}
	for i := range elements {
		elements[i].start += val.start
		elements[i].end += val.start
	}
	return cutItem(cur, elements, found), nil
}

// cutItem deletes one of several comma-separated items, up to the next item or
// from the end of the one before.
func cutItem(src []byte, items []span, at int) []byte {
	switch {
	case at+1 < len(items):
		return splice(src, items[at].start, items[at+1].start, "")
	case at > 0:
		return splice(src, items[at-1].end, items[at].end, "")
	default:
		return splice(src, items[at].start, items[at].end, "")
	}
}
