package fdkeeper

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// Version of the protocol.
	Version = 1

	headerSize = 16
	// maxMessage bounds a packet: a set's, or a page of a list.
	maxMessage = headerSize + MaxName + MaxMeta
	helloBody  = "damselfly-fdkeeper"
)

// kind is what a message is.
type kind uint8

const (
	// kindHello: the stamp is the version, the body helloBody. The reply's body
	// goes on with the server's instance (8 bytes).
	kindHello kind = 1 + iota
	// kindPut: a set; reply kindOK.
	kindPut
	// kindGet: a name; reply kindSet.
	kindGet
	// kindList: the name after which to begin; reply kindEntries.
	kindList
	// kindDrop: a name; reply kindOK.
	kindDrop
	kindOK
	kindSet
	// kindEntries: entries in the body; the stamp is 1 if there are more.
	kindEntries
	// kindError: the stamp is a code, the body a text.
	kindError
	kindEnd
)

// codes are the errors that cross the socket, by their code.
var codes = [...]error{ErrProtocol, ErrNotFound, ErrInvalid, ErrStale, ErrFull, ErrDenied} //nolint:gochecknoglobals // a table

// message is one packet, without its descriptors.
type message struct {
	kind  kind
	name  string
	stamp uint64
	body  []byte
}

func (m message) encode() []byte {
	b := make([]byte, headerSize, headerSize+len(m.name)+len(m.body))
	b[0] = byte(m.kind)
	binary.BigEndian.PutUint16(b[2:], uint16(len(m.name))) //nolint:gosec // names are checked
	binary.BigEndian.PutUint32(b[4:], uint32(len(m.body))) //nolint:gosec // bodies are checked
	binary.BigEndian.PutUint64(b[8:], m.stamp)
	b = append(b, m.name...)
	return append(b, m.body...)
}

// decode is strict: there is one encoding of each message. The body is a part
// of b.
func decode(b []byte) (message, error) {
	if len(b) < headerSize || len(b) > maxMessage {
		return message{}, fmt.Errorf("message of %d bytes: %w", len(b), ErrProtocol)
	}
	name, body := int(binary.BigEndian.Uint16(b[2:])), int64(binary.BigEndian.Uint32(b[4:]))
	m := message{kind: kind(b[0]), stamp: binary.BigEndian.Uint64(b[8:])}
	if m.kind == 0 || m.kind >= kindEnd || b[1] != 0 {
		return message{}, fmt.Errorf("message of kind %d: %w", m.kind, ErrProtocol)
	}
	if int64(len(b)) != headerSize+int64(name)+body || name > MaxName || body > MaxMeta {
		return message{}, fmt.Errorf("message of %d bytes, with name of %d and body of %d: %w", len(b), name, body, ErrProtocol)
	}
	m.name, m.body = string(b[headerSize:headerSize+name]), b[headerSize+name:]
	if m.name != "" {
		if err := checkName(m.name); err != nil {
			return message{}, fmt.Errorf("%w: %w", ErrProtocol, err)
		}
	}
	return m, nil
}

// errorMessage is the reply for err.
func errorMessage(err error) message {
	m := message{kind: kindError, body: []byte(err.Error())}
	for code, known := range codes {
		if errors.Is(err, known) {
			m.stamp = uint64(code)
		}
	}
	m.body = m.body[:min(len(m.body), 1024)]
	return m
}

// err is what a reply of kindError says.
func (m message) err() error {
	if m.stamp >= uint64(len(codes)) {
		return fmt.Errorf("%w: %q", ErrProtocol, m.body)
	}
	return fmt.Errorf("%w: keeper: %q", codes[m.stamp], m.body)
}

const entryHeader = 10

// appendEntry adds e to the body of a list.
func appendEntry(b []byte, e Entry) []byte {
	b = append(b, byte(len(e.Name)), byte(e.Files)) //nolint:gosec // both are checked
	b = binary.BigEndian.AppendUint64(b, e.Stamp)
	return append(b, e.Name...)
}

func decodeEntries(b []byte) ([]Entry, error) {
	var entries []Entry
	for len(b) > 0 {
		if len(b) < entryHeader || len(b) < entryHeader+int(b[0]) {
			return nil, fmt.Errorf("list ends within an entry: %w", ErrProtocol)
		}
		end := entryHeader + int(b[0])
		e := Entry{Name: string(b[entryHeader:end]), Files: int(b[1]), Stamp: binary.BigEndian.Uint64(b[2:])}
		if err := checkName(e.Name); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if n := len(entries); n > 0 && entries[n-1].Name >= e.Name {
			return nil, fmt.Errorf("list is not ordered: %w", ErrProtocol)
		}
		entries, b = append(entries, e), b[end:]
	}
	return entries, nil
}
