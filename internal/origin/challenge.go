package origin

import (
	"errors"
	"net/http"
	"strings"
)

// challenge is one way of authenticating that an origin offers.
type challenge struct {
	scheme  string            // lower case
	token68 string            // instead of params, for schemes like Negotiate
	params  map[string]string // names in lower case; the first of equal names
}

var errChallenge = errors.New("malformed WWW-Authenticate")

// challenges reads all challenges of an answer. A malformed header value counts
// up to where it breaks: it must not hide the others.
func challenges(h http.Header) []challenge {
	var all []challenge
	for _, value := range h.Values("WWW-Authenticate") {
		found, _ := parseChallenges(value)
		all = append(all, found...)
	}
	return all
}

// parseChallenges reads the value of a WWW-Authenticate header (RFC 9110,
// section 11.6.1), a list of challenges whose parameters are a list too.
// Unquoted values may hold any visible character but comma and quote, as some
// registries write URLs so.
func parseChallenges(s string) ([]challenge, error) {
	var found []challenge
	p := parser{rest: s}
	for {
		p.skip(" \t,")
		if p.rest == "" {
			return found, nil
		}
		scheme := p.token()
		if scheme == "" || (p.rest != "" && !strings.ContainsRune(" \t,", rune(p.rest[0]))) {
			return found, errChallenge
		}
		ch := challenge{scheme: strings.ToLower(scheme)}
		if err := p.credentials(&ch); err != nil {
			return found, err
		}
		found = append(found, ch)
	}
}

// parser consumes a header value from its front.
type parser struct{ rest string }

func (p *parser) skip(set string) { p.rest = strings.TrimLeft(p.rest, set) }

// token takes the longest token (RFC 9110, section 5.6.2).
func (p *parser) token() string {
	return p.takeWhile(func(c byte) bool {
		return isAlnum(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
	})
}

func (p *parser) takeWhile(ok func(byte) bool) string {
	n := 0
	for n < len(p.rest) && ok(p.rest[n]) {
		n++
	}
	taken := p.rest[:n]
	p.rest = p.rest[n:]
	return taken
}

// credentials takes what follows a scheme: parameters, a token68, or nothing.
func (p *parser) credentials(ch *challenge) error {
	p.skip(" \t")
	if name, value, ok, err := p.param(); err != nil {
		return err
	} else if ok {
		ch.params = map[string]string{name: value}
		return p.moreParams(ch)
	}
	before := p.rest
	ch.token68 = p.takeWhile(func(c byte) bool { return isAlnum(c) || strings.IndexByte("-._~+/", c) >= 0 })
	if ch.token68 != "" {
		ch.token68 += p.takeWhile(func(c byte) bool { return c == '=' })
	}
	p.skip(" \t")
	if p.rest != "" && p.rest[0] != ',' {
		p.rest = before
		return errChallenge
	}
	return nil
}

// moreParams takes the parameters after the first. The comma before them is
// also what separates challenges; only a parameter has an equals sign next.
func (p *parser) moreParams(ch *challenge) error {
	for {
		p.skip(" \t")
		if p.rest != "" && p.rest[0] != ',' {
			return errChallenge
		}
		p.skip(" \t,")
		name, value, ok, err := p.param()
		if err != nil || !ok {
			return err
		}
		if _, dup := ch.params[name]; !dup {
			ch.params[name] = value
		}
	}
}

// param takes one name=value. If there is none here it takes nothing.
func (p *parser) param() (name, value string, ok bool, err error) {
	before := p.rest
	name = strings.ToLower(p.token())
	p.skip(" \t")
	if name == "" || !strings.HasPrefix(p.rest, "=") {
		p.rest = before
		return "", "", false, nil
	}
	p.rest = p.rest[1:]
	p.skip(" \t")
	if strings.HasPrefix(p.rest, `"`) {
		value, err = p.quoted()
		return name, value, err == nil, err
	}
	value = p.takeWhile(func(c byte) bool { return c > ' ' && c != 0x7f && c != ',' && c != '"' })
	if strings.Trim(value, "=") == "" {
		p.rest = before // the padding of a token68
		return "", "", false, nil
	}
	return name, value, true, nil
}

// quoted takes a quoted-string.
func (p *parser) quoted() (string, error) {
	var b strings.Builder
	for i := 1; i < len(p.rest); i++ {
		switch c := p.rest[i]; {
		case c == '"':
			p.rest = p.rest[i+1:]
			return b.String(), nil
		case c == '\\' && i+1 < len(p.rest):
			i++
			b.WriteByte(p.rest[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", errChallenge
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}
