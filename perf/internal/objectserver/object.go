package objectserver

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// WriteObject writes an object of the given size into dir and returns its
// digest, "sha256:<hex>". The bytes do not compress and follow from seed.
func WriteObject(dir string, seed uint64, size int64) (digest string, err error) {
	f, err := os.CreateTemp(dir, "object-")
	if err != nil {
		return "", fmt.Errorf("write object: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	sum := sha256.New()
	w := bufio.NewWriterSize(f, 1<<20)
	if _, err := io.CopyN(io.MultiWriter(w, sum), rand.NewChaCha8(key), size); err != nil { // #nosec G404 -- repeatable content
		return "", fmt.Errorf("write object: %w", err)
	}
	if err := w.Flush(); err != nil {
		return "", fmt.Errorf("write object: %w", err)
	}
	if err := f.Close(); err != nil {
		return "", fmt.Errorf("write object: %w", err)
	}
	digest = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	if err := os.Rename(f.Name(), filepath.Join(dir, digest)); err != nil {
		return "", fmt.Errorf("write object: %w", err)
	}
	return digest, nil
}

// WriteBytes writes an object of the given content into dir and returns its
// digest.
func WriteBytes(dir string, content []byte) (digest string, err error) {
	sum := sha256.Sum256(content)
	digest = "sha256:" + hex.EncodeToString(sum[:])
	if err := os.WriteFile(filepath.Join(dir, digest), content, 0o644); err != nil {
		return "", fmt.Errorf("write object: %w", err)
	}
	return digest, nil
}
