package artifact

import (
	"encoding/json"
	"fmt"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// referrers is an image index that keeps what it does not know, for it belongs
// to everybody who refers to the subject.
type referrers struct {
	members   map[string]json.RawMessage
	manifests []json.RawMessage
}

// AddReferrer adds d to the list of referrers of a subject that is kept under
// FallbackTag, and reports whether that changed anything. A list that does not
// exist yet is nil. Other entries and their order stay as they are; an entry of
// the same digest is replaced. Errors wrap ErrInvalid.
//
// Registries cannot update a tag conditionally: of two writers at the same time
// one loses its entry, and should read the list again after writing it.
func AddReferrer(list []byte, d v1.Descriptor) ([]byte, bool, error) {
	entry, err := json.Marshal(d)
	if err != nil {
		return nil, false, fmt.Errorf("encode referrer: %w", err)
	}
	r, err := parseReferrers(list)
	if err != nil {
		return nil, false, err
	}
	at := len(r.manifests)
	for i, old := range r.manifests {
		var known v1.Descriptor
		if json.Unmarshal(old, &known) != nil || known.Digest != d.Digest {
			continue
		}
		if again, err := json.Marshal(known); err == nil && string(again) == string(entry) {
			return list, false, nil
		}
		at = i
		break
	}
	if at == len(r.manifests) {
		r.manifests = append(r.manifests, nil)
	}
	r.manifests[at] = entry
	data, err := r.encode()
	return data, err == nil, err
}

// Referrers returns the entries of a list of referrers, as the registry's API
// or FallbackTag has it, that are manifests of the given artifactType. Entries
// that are broken are left out: a registry lets anybody add some. Errors wrap
// ErrInvalid.
func Referrers(list []byte, artifactType string) ([]v1.Descriptor, error) {
	r, err := parseReferrers(list)
	if err != nil {
		return nil, err
	}
	var found []v1.Descriptor
	for _, entry := range r.manifests {
		var d v1.Descriptor
		if json.Unmarshal(entry, &d) != nil || checkDescriptor(d, MaxManifest) != nil {
			continue
		}
		if d.MediaType == v1.MediaTypeImageManifest && d.ArtifactType == artifactType {
			found = append(found, d)
		}
	}
	return found, nil
}

func parseReferrers(list []byte) (*referrers, error) {
	r := &referrers{members: map[string]json.RawMessage{}}
	if list == nil {
		return r, nil
	}
	if err := checkLength(list); err != nil {
		return nil, fmt.Errorf("list of referrers: %w", err)
	}
	if err := json.Unmarshal(list, &r.members); err != nil {
		return nil, fmt.Errorf("list of referrers: %w", invalid("%w", err))
	}
	var mediaType string
	if raw, ok := r.members["mediaType"]; ok {
		if err := json.Unmarshal(raw, &mediaType); err != nil || mediaType != v1.MediaTypeImageIndex {
			return nil, fmt.Errorf("list of referrers: %w", invalid("media type is %.80s, not %q", raw, v1.MediaTypeImageIndex))
		}
	}
	if raw, ok := r.members["manifests"]; ok {
		if err := json.Unmarshal(raw, &r.manifests); err != nil {
			return nil, fmt.Errorf("list of referrers: %w", invalid("%w", err))
		}
	}
	return r, nil
}

func (r *referrers) encode() ([]byte, error) {
	manifests, err := json.Marshal(r.manifests)
	if err != nil {
		return nil, fmt.Errorf("encode list of referrers: %w", err)
	}
	members := make(map[string]json.RawMessage, len(r.members)+3)
	for name, raw := range r.members {
		members[name] = raw
	}
	members["schemaVersion"] = json.RawMessage("2")
	members["mediaType"] = json.RawMessage(`"` + v1.MediaTypeImageIndex + `"`)
	members["manifests"] = manifests
	data, err := json.Marshal(members)
	if err != nil {
		return nil, fmt.Errorf("encode list of referrers: %w", err)
	}
	if err := checkLength(data); err != nil {
		return nil, fmt.Errorf("list of referrers: %w", err)
	}
	return data, nil
}
