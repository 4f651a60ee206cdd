package artifact

import (
	"bytes"
	"encoding/json"
	"strings"
)

// members are the names that an object may have a meaning by, and those of the
// objects in them. Others are not looked at, for OCI lets anybody add some.
type members map[string]members

var (
	descriptorMembers = members{
		"mediaType": nil, "digest": nil, "size": nil, "urls": nil, "annotations": nil,
		"data": nil, "platform": nil, "artifactType": nil,
	}
	manifestMembers = members{
		"schemaVersion": nil, "mediaType": nil, "artifactType": nil,
		"config": descriptorMembers, "layers": descriptorMembers, "subject": descriptorMembers,
		"annotations": nil, "manifests": nil, "fsLayers": nil,
	}
)

// checkMembers refuses a document, valid JSON, that means different things to
// different readers: an object has two members of one name, of which some
// readers take the first, some the last and some a mixture, or a name in other
// letters ("Layers"), which Go takes for the one that others do not see.
func checkMembers(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	return manifestMembers.value(d)
}

// value goes over the next value. The elements of a list are as their list.
func (m members) value(d *json.Decoder) error {
	token, err := d.Token()
	if err != nil {
		return invalid("%w", err)
	}
	switch token {
	case json.Delim('{'):
		return m.object(d)
	case json.Delim('['):
		for d.More() {
			if err := m.value(d); err != nil {
				return err
			}
		}
		return end(d)
	}
	return nil
}

func (m members) object(d *json.Decoder) error {
	seen := map[string]bool{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return invalid("%w", err)
		}
		name, ok := token.(string)
		if !ok || seen[name] {
			return invalid("two members are named %.80q", token)
		}
		seen[name] = true
		if known, ok := m.like(name); ok {
			return invalid("a member is named %.80q, not %q", name, known)
		}
		if err := m[name].value(d); err != nil {
			return err
		}
	}
	return end(d)
}

// like returns the name that another one is in other letters.
func (m members) like(name string) (string, bool) {
	if _, ok := m[name]; ok {
		return "", false
	}
	for known := range m {
		if strings.EqualFold(known, name) {
			return known, true
		}
	}
	return "", false
}

func end(d *json.Decoder) error {
	if _, err := d.Token(); err != nil {
		return invalid("%w", err)
	}
	return nil
}
