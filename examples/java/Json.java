import java.lang.reflect.ParameterizedType;
import java.lang.reflect.RecordComponent;
import java.lang.reflect.Type;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** JSON to records and back, so that the example needs the JDK alone; use Jackson in its place. */
final class Json {
    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    /** An object as a record of this type. A field that the record lacks is ignored. */
    static <T> T read(String text, Class<T> type) {
        try {
            return type.cast(as(new Json(text).value(), type));
        } catch (RuntimeException error) {
            throw new IllegalArgumentException("this is no " + type.getSimpleName(), error);
        }
    }

    /** A record, list, map or plain value as JSON. A null of a record is left out. */
    static String write(Object value) {
        if (value instanceof Record) {
            Map<String, Object> fields = new LinkedHashMap<>();
            for (RecordComponent one : value.getClass().getRecordComponents()) {
                Object field = call(() -> one.getAccessor().invoke(value));
                if (field != null) {
                    fields.put(snake(one.getName()), field);
                }
            }
            return write(fields);
        } else if (value instanceof Map<?, ?> map) {
            List<String> parts = new ArrayList<>();
            map.forEach((name, one) -> parts.add(write(name) + ":" + write(one)));
            return "{" + String.join(",", parts) + "}";
        } else if (value instanceof List<?> list) {
            return "[" + String.join(",", list.stream().map(Json::write).toList()) + "]";
        } else if (value instanceof String string) {
            StringBuilder out = new StringBuilder("\"");
            for (char c : string.toCharArray()) {
                // Escaped outside ASCII too, so that half of a surrogate pair arrives as it is.
                boolean plain = c >= ' ' && c <= '~' && c != '"' && c != '\\';
                out.append(plain ? String.valueOf(c) : String.format("\\u%04x", (int) c));
            }
            return out.append('"').toString();
        }
        return String.valueOf(value);
    }

    private static Object as(Object value, Type type) {
        if (value == null) {
            return null;
        } else if (type instanceof ParameterizedType of && value instanceof List<?> list) {
            Type item = of.getActualTypeArguments()[0];
            return list.stream().map(one -> as(one, item)).toList();
        } else if (type instanceof ParameterizedType of && value instanceof Map<?, ?> map) {
            Map<Object, Object> found = new LinkedHashMap<>();
            map.forEach((name, one) -> found.put(name, as(one, of.getActualTypeArguments()[1])));
            return found;
        } else if (type instanceof Class<?> plain && plain.isRecord()) {
            RecordComponent[] components = plain.getRecordComponents();
            Object[] fields = new Object[components.length];
            Class<?>[] types = new Class<?>[components.length];
            for (int i = 0; i < components.length; i++) {
                types[i] = components[i].getType();
                String name = snake(components[i].getName());
                fields[i] = as(((Map<?, ?>) value).get(name), components[i].getGenericType());
            }
            return call(() -> plain.getDeclaredConstructor(types).newInstance(fields));
        } else if (type == Integer.class) {
            return ((Double) value).intValue();
        }
        return ((Class<?>) type).cast(value);
    }

    private interface Call {
        Object run() throws ReflectiveOperationException;
    }

    private static Object call(Call call) {
        try {
            return call.run();
        } catch (ReflectiveOperationException error) {
            throw new IllegalStateException(error);
        }
    }

    private static String snake(String name) {
        return name.replaceAll("([A-Z])", "_$1").toLowerCase();
    }

    /** The next value: a Map, List, String, Double, Boolean or null. */
    private Object value() {
        switch (next()) {
            case '{':
                Map<String, Object> map = new LinkedHashMap<>();
                for (at++; next() != '}'; skip(',')) {
                    String name = string();
                    skip(':');
                    map.put(name, value());
                }
                at++;
                return map;
            case '[':
                List<Object> list = new ArrayList<>();
                for (at++; next() != ']'; skip(',')) {
                    list.add(value());
                }
                at++;
                return list;
            case '"':
                return string();
            default:
                int start = at;
                while (at < text.length() && ",]} \t\r\n".indexOf(text.charAt(at)) < 0) {
                    at++;
                }
                String word = text.substring(start, at);
                return switch (word) {
                    case "null" -> null;
                    case "true", "false" -> Boolean.valueOf(word);
                    default -> Double.valueOf(word);
                };
        }
    }

    private String string() {
        StringBuilder out = new StringBuilder();
        next();
        for (at++; text.charAt(at) != '"'; at++) {
            char c = text.charAt(at);
            if (c == '\\') {
                c = text.charAt(++at);
                if (c == 'u') {
                    c = (char) Integer.parseInt(text.substring(at + 1, at + 5), 16);
                    at += 4;
                } else if ("bfnrt".indexOf(c) >= 0) {
                    c = "\b\f\n\r\t".charAt("bfnrt".indexOf(c));
                }
            }
            out.append(c);
        }
        at++;
        return out.toString();
    }

    private char next() {
        while (Character.isWhitespace(text.charAt(at))) {
            at++;
        }
        return text.charAt(at);
    }

    private void skip(char c) {
        if (next() == c) {
            at++;
        }
    }
}
