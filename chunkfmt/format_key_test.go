package chunkfmt_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/klauspost/compress/zstd"
)

// TestDeviceKeyByText takes sections of whole indexes, of which one is all that
// an index with one blob has.
func TestDeviceKeyByText(t *testing.T) {
	key := func(x *chunkfmt.Index, chunks bool) chunkfmt.Digest {
		p, err := chunkfmt.Encode(x)
		must(t, err)
		dec, err := zstd.NewReader(nil)
		must(t, err)
		defer dec.Close()
		body, err := dec.DecodeAll(p[128:], nil)
		must(t, err)
		var sections [][]byte
		for len(body) > 0 {
			size := binary.LittleEndian.Uint64(body[4:])
			sections = append(sections, body[12:12+size])
			body = body[12+size:]
		}
		hashed := append([]byte("dev.damselfly.device.v1\n"), sections[1]...)
		if chunks {
			hashed = append(hashed, sections[2]...)
		}
		return chunkfmt.Sum(hashed)
	}
	tree := oneFile(t, "a", sharedBlob(unproven), at(0, 0, 4096, "0"), at(0, 8192, 4096, "8"))
	if got, want := tree.DeviceKey(0), key(&chunkfmt.Index{Tree: *tree}, true); got != want {
		t.Errorf("unproven: key %s, want %s", got, want)
	}
	// An index with the blob, but without chunks in it.
	d := chunkfmt.NewDraft()
	empty, err := d.Freeze(nil, []chunkfmt.Blob{sharedBlob(nil)})
	must(t, err)
	tree = oneFile(t, "a", sharedBlob(nil), at(0, 0, 4096, "0"))
	if got, want := tree.DeviceKey(0), key(&chunkfmt.Index{Tree: *empty}, false); got != want {
		t.Errorf("proven: key %s, want %s", got, want)
	}
}

// TestSignatureByText verifies the golden signature of the golden artifact with
// the first key of RFC 8032, section 7.1.
func TestSignatureByText(t *testing.T) {
	artifact, err := os.ReadFile("artifact/testdata/manifest.json")
	must(t, err)
	artifact = bytes.TrimSuffix(artifact, []byte("\n"))
	p, err := os.ReadFile("trust/testdata/signature.json")
	must(t, err)
	var signature struct {
		ArtifactType string
		Subject      struct {
			MediaType, Digest string
			Size              int
		}
		Annotations map[string]string
	}
	must(t, json.Unmarshal(p, &signature))
	digest := chunkfmt.Sum(artifact).String()
	if signature.ArtifactType != "application/vnd.damselfly.signature.v1" || signature.Subject.Digest != digest ||
		signature.Subject.Size != len(artifact) || signature.Subject.MediaType != "application/vnd.oci.image.manifest.v1+json" {
		t.Errorf("signature %+v of %s", signature, digest)
	}
	key, err := hex.DecodeString("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
	must(t, err)
	sig, err := base64.StdEncoding.DecodeString(signature.Annotations["dev.damselfly.signature"])
	must(t, err)
	if !ed25519.Verify(key, []byte("dev.damselfly.signature.v1\n"+digest+"\n"), sig) {
		t.Error("the signature does not verify")
	}
	der, err := x509.MarshalPKIXPublicKey(ed25519.PublicKey(key))
	must(t, err)
	if got := fmt.Sprintf("%x", sha256.Sum256(der))[:16]; got != "06e3fd8fda29bb60" || got != signature.Annotations["dev.damselfly.key"] {
		t.Errorf("key ID %s", got)
	}
}
