package origin

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
)

// Credential authorises requests. Either Authorization is set, or Username and
// Password, or nothing: the zero Credential is anonymous.
//
// A username and password are sent as they are (Basic) or exchanged for a
// bearer token, whichever the origin's challenge asks for. The registry names
// its token server in that challenge, and the protocol lets it name any host.
// They are sent there only over HTTPS, so that nobody but the named server
// reads them, or over plain HTTP if the registry itself is plain HTTP on the
// same host, where they would be readable anyway. An anonymous token is fetched
// from any http or https URL.
type Credential struct {
	// Authorization is the verbatim value of an Authorization header.
	Authorization string
	// Username and Password are for Basic or the registry token protocol.
	Username, Password string
}

// String returns the kind of the credential without its secrets.
func (c Credential) String() string {
	switch {
	case c.Authorization != "":
		return "authorization(redacted)"
	case c.Username != "" || c.Password != "":
		return "password(redacted)"
	}
	return "anonymous"
}

// GoString is String, so that %#v prints no secret either.
func (c Credential) GoString() string { return "origin.Credential{" + c.String() + "}" }

// Format prints String for every verb. Without it %x or %d would walk the
// fields.
func (c Credential) Format(f fmt.State, verb rune) {
	s := c.String()
	if verb == 'v' && f.Flag('#') {
		s = c.GoString()
	}
	_, _ = io.WriteString(f, s) // fmt.State keeps its own errors
}

// LogValue is String.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText is String: a credential cannot be written out by accident.
func (c Credential) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// processKey makes Credential.Key useless outside this process. It is random,
// never changes after its first use and is not configuration, hence global.
var processKey = sync.OnceValue(func() []byte {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails, as crypto/rand documents
	return key
})

// Key returns an opaque value that is equal for equal credentials, fit as a map
// key. It reveals nothing about the credential and differs between processes.
func (c Credential) Key() string {
	mac := hmac.New(sha256.New, processKey())
	for _, field := range []string{c.Authorization, c.Username, c.Password} {
		// The length goes first, so that no two inputs join to the same bytes.
		mac.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(field))))
		mac.Write([]byte(field))
	}
	return hex.EncodeToString(mac.Sum(nil))
}

// password reports a username and password, or one of them.
func (c Credential) password() bool { return c.Username != "" || c.Password != "" }

func (c Credential) basic() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
}

var errTwoCredentials = errors.New("credential has both Authorization and Username or Password")

func (c Credential) validate() error {
	if c.Authorization != "" && c.password() {
		return errTwoCredentials
	}
	return nil
}
