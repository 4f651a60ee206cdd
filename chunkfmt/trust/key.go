package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
)

// The PEM types of keys.
const (
	privateType = "PRIVATE KEY"
	publicType  = "PUBLIC KEY"
)

// keyIDLength is the length of a key's ID in bytes, half of that in hex digits.
const keyIDLength = 8

// PrivateKey signs. Its content is in no formatted text.
type PrivateKey struct {
	key    ed25519.PrivateKey
	public PublicKey
}

// PublicKey verifies. The zero value verifies nothing.
type PublicKey struct {
	key ed25519.PublicKey
	id  string
}

// Generate returns a new key.
func Generate() (*PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	return newPrivateKey(key)
}

func newPrivateKey(key ed25519.PrivateKey) (*PrivateKey, error) {
	half, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("private key has no Ed25519 public key")
	}
	public, err := newPublicKey(half)
	if err != nil {
		return nil, err
	}
	return &PrivateKey{key: key, public: public}, nil
}

func newPublicKey(key ed25519.PublicKey) (PublicKey, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return PublicKey{}, fmt.Errorf("encode public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return PublicKey{key: key, id: hex.EncodeToString(sum[:keyIDLength])}, nil
}

// Public returns the half that others verify with.
func (k *PrivateKey) Public() PublicKey { return k.public }

// ID returns the ID of the public key.
func (k *PrivateKey) ID() string { return k.public.id }

// MarshalPEM returns the key as PKCS#8.
func (k *PrivateKey) MarshalPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.key)
	if err != nil {
		return nil, fmt.Errorf("encode private key %s: %w", k.ID(), err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: privateType, Bytes: der}), nil
}

// Format writes what the key is, whatever the verb.
func (k PrivateKey) Format(s fmt.State, _ rune) {
	// A fmt.State never fails; its writer's errors are its caller's.
	_, _ = fmt.Fprintf(s, "private key %s", k.public.id)
}

// LogValue returns the key's ID.
func (k PrivateKey) LogValue() slog.Value { return slog.StringValue(k.public.id) }

// ID names the key: the first 16 hex digits of the SHA-256 of its
// SubjectPublicKeyInfo. Keys of the same ID are different keys all the same.
func (k PublicKey) ID() string { return k.id }

// String returns the key's ID.
func (k PublicKey) String() string { return k.id }

// Equal reports whether both are the same key.
func (k PublicKey) Equal(other PublicKey) bool { return bytes.Equal(k.key, other.key) }

// MarshalPEM returns the key as SubjectPublicKeyInfo.
func (k PublicKey) MarshalPEM() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(k.key)
	if err != nil {
		return nil, fmt.Errorf("encode public key %s: %w", k.id, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: publicType, Bytes: der}), nil
}

// ParsePrivateKey reads what PrivateKey.MarshalPEM, or openssl, has written.
// Errors wrap ErrKey.
func ParsePrivateKey(data []byte) (*PrivateKey, error) {
	blocks, err := decodePEM(data)
	switch {
	case err != nil:
		return nil, err
	case len(blocks) != 1:
		return nil, keyError("%d keys, want one private key", len(blocks))
	case blocks[0].Type == "ENCRYPTED PRIVATE KEY":
		return nil, keyError("the key is encrypted; decrypt it first: openssl pkey -in FILE -out KEY")
	case blocks[0].Type != privateType:
		return nil, keyError("PEM type is %.80q, want %q", blocks[0].Type, privateType)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(blocks[0].Bytes)
	if err != nil {
		return nil, keyError("%w", err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, keyError("it is not an Ed25519 key; make one with: dfctl key create")
	}
	return newPrivateKey(key)
}

// ParsePublicKeys reads one or more keys that PublicKey.MarshalPEM, or openssl,
// has written. Errors wrap ErrKey.
func ParsePublicKeys(data []byte) ([]PublicKey, error) {
	blocks, err := decodePEM(data)
	if err != nil {
		return nil, err
	}
	keys := make([]PublicKey, len(blocks))
	for i, b := range blocks {
		switch b.Type {
		case publicType:
		case privateType:
			return nil, keyError("it is a private key, which belongs to whoever signs; get its public key with: dfctl key export --key FILE")
		default:
			return nil, keyError("PEM type is %.80q, want %q", b.Type, publicType)
		}
		parsed, err := x509.ParsePKIXPublicKey(b.Bytes)
		if err != nil {
			return nil, keyError("%w", err)
		}
		key, ok := parsed.(ed25519.PublicKey)
		if !ok {
			return nil, keyError("it is not an Ed25519 key")
		}
		if keys[i], err = newPublicKey(key); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// decodePEM returns the blocks of a text that has nothing else: a key with a
// typing error in its first line would otherwise be left out unseen.
func decodePEM(data []byte) ([]*pem.Block, error) {
	if len(data) > MaxFile {
		return nil, keyError("%d bytes, at most %d", len(data), MaxFile)
	}
	var blocks []*pem.Block
	for rest := bytes.TrimSpace(data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		if !bytes.HasPrefix(rest, []byte("-----BEGIN ")) {
			return nil, keyError("want PEM and nothing else: -----BEGIN … KEY-----")
		}
		block, more := pem.Decode(rest)
		// Decode skips blocks that are broken; the skipped text is then longer.
		if block == nil || bytes.Count(rest[:len(rest)-len(more)], []byte("-----BEGIN ")) != 1 {
			return nil, keyError("broken PEM")
		}
		blocks, rest = append(blocks, block), more
	}
	if len(blocks) == 0 {
		return nil, keyError("no PEM")
	}
	return blocks, nil
}

func keyError(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrKey, fmt.Errorf(format, args...))
}
